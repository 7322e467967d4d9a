"""Files of data sets: downloaded once into a cache folder, and verified whenever they are read."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import sys
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path

from treepie.kernels import cache, config

#: Seconds that a mirror may stay silent.
_PATIENCE = 30.0


@dataclass(frozen=True)
class Source:
    """Where the gzipped files of a data set come from.

    name: of the function in `tp.datasets`, and of the folder.  mirrors: addresses, in the order in which
    they are tried.  digests: file -> SHA-256.  of_content: whether of the unzipped content, for mirrors that
    compress it differently.  largest: bytes of a file, zipped or not; a download reads no more.
    """

    name: str
    mirrors: tuple[str, ...]
    digests: dict[str, str]
    of_content: bool = False
    largest: int = 2**26

    @property
    def function(self) -> str:
        """The name of the function for messages."""
        return f"datasets.{self.name}"

    def unzipped(self, file: str, raw: bytes, most: int = -1) -> bytes:
        """Return the content of a file, unzipped if it is gzipped, whatever its name."""
        if raw[:2] != b"\x1f\x8b":
            return raw
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(raw)) as stream:
                return stream.read(most)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{self.function}: {file} is damaged, expected a gzip file ({error})") from None

    def verified(self, file: str, shown: str, raw: bytes) -> bytes:
        """Return the unzipped content of a file, or raise ValueError where its checksum is another one."""
        if not self.of_content:
            self._check("the file", self.digests[file], raw)
        content = self.unzipped(shown, raw, self.largest)
        if self.of_content:
            self._check("the unzipped content", self.digests[file], content)
        return content

    def _check(self, what: str, expected: str, content: bytes) -> None:
        digest = hashlib.sha256(content).hexdigest()
        if digest != expected:
            raise ValueError(f"{what} has SHA-256 {digest}, expected {expected}")

    # ---- the cache
    def folder(self) -> Path:
        """Create and return the folder of downloaded files."""
        folder = None
        try:
            parent = Path(config.DATA_DIR) if config.DATA_DIR else cache.user_folder() / "datasets"
            folder = parent / self.name
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(folder, error) from error
        return folder

    def _unusable(self, folder: Path | None, error: OSError) -> OSError:
        return OSError(
            f"{self.function}: can not keep downloads in {folder or 'a cache folder'} ({error}). Set "
            "TREEPIE_DATA_DIR to a writable folder, or pass path, a folder with the files"
        )

    def cached(self, file: str) -> bytes:
        """Return the unzipped content of a file, downloaded unless the folder has an undamaged copy."""
        folder = self.folder()
        path = folder / file
        with contextlib.suppress(OSError, ValueError):  # missing or damaged
            return self.verified(file, str(path), path.read_bytes())
        print(f"treepie: downloading {file} into {folder} ...", file=sys.stderr, flush=True)
        raw, content = self._downloaded(file, folder)
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex}")  # a reader sees the whole file or none
        try:
            part.write_bytes(raw)
            os.replace(part, path)
        except OSError as error:
            raise self._unusable(folder, error) from error
        finally:
            part.unlink(missing_ok=True)
        return content

    def _downloaded(self, file: str, folder: Path) -> tuple[bytes, bytes]:
        """Return a file, zipped and unzipped, from the first mirror with an undamaged copy."""
        # Imported here, because `import treepie` needs neither HTTP nor TLS.
        from http.client import HTTPException
        from urllib.request import urlopen

        failures = []
        for mirror in self.mirrors:
            url = f"{mirror}{file}"
            try:
                with urlopen(url, timeout=_PATIENCE) as response:
                    raw = response.read(self.largest)
                return raw, self.verified(file, "the answer", raw)
            except (OSError, HTTPException, ValueError) as error:
                failures.append(f"\n  {url}: {error or type(error).__name__}")
        raise OSError(
            f"{self.function}: no mirror has {file}:{''.join(failures)}\n"
            f"Without a network, put {file} into {folder}, or pass path, a folder with the files"
        )

    # ---- a user's folder
    def found(self, folder: Path, names: list[str]) -> tuple[str, bytes]:
        """Return the path and the unzipped content of a file in a user's folder, by any of its names."""
        for path in (folder / n for n in names):
            if path.is_file():
                return str(path), self.unzipped(str(path), path.read_bytes())
        problem = f"no file {names[0]}" if folder.is_dir() else "no such folder"
        raise FileNotFoundError(
            f"{self.function}: path is {str(folder)!r}: {problem}, expected {' or '.join(names)}"
        )
