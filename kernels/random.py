"""Random numbers: Threefry-2x32 with 20 rounds, as formulas of (key, index of the element).

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". Every element is a function of
the key and its index alone, so its bits depend on neither threads, vector width nor CPU.

The low halves of a key's two int64 words are the generator's key. The high halves say which rows of a global
batch a process computes: the index of the first, `first`, and their number, 0 for a key without rows. An
array whose first axis has this number of elements is these rows of a global array, and the index of an
element is the one there: its flat position plus `first` times the elements of a row. In other arrays it is
the flat position.

An element of index i, below 2**62, draws from the block `threefry(key, counter)` whose 64-bit counter is
`i + STREAM * 2**32`; a block is two words w0, w1 of 32 bits:

    bits      w0 + 2**32 * w1                    counter stream BITS
    uniform   float32: (w0 >> 8) / 2**24         float64: (bits >> 11) / 2**53
    normal    sqrt(-2 log(u)) cos(2 pi t)        Box & Muller 1958
              float32: u = (w0 + 1) / 2**32, rounded, and t = w1 / 2**32
              float64: u = ((bits >> 11) + 1) / 2**53, and t = second / 2**64, where `second` are the
              bits of the stream SECOND
"""

import functools
import math

from .formulas import log
from .trigonometry import cos_turns
from .vector import Formula, Value, select, sqrt

#: The highest byte of the counter, so that draws, split keys and folded keys never share a block.
BITS, SECOND, SPLIT, FOLD = 0, 0x40000000, -0x80000000, -0x40000000

_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA
_LOW = 0xFFFFFFFF


def threefry(key0: Value, key1: Value, x0: Value, x1: Value) -> tuple[Value, Value]:
    """Return the two words of a block: all arguments are int32 values, read as unsigned."""
    keys = (key0, key1, key0 ^ key1 ^ _PARITY)
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for round_ in range(20):
        x0 = x0 + x1
        x1 = x1.rotate_left(_ROTATIONS[round_ % 8]) ^ x0
        if round_ % 4 == 3:
            step = round_ // 4 + 1
            x0 = x0 + keys[step % 3]
            x1 = x1 + (keys[(step + 1) % 3] + step)
    return x0, x1


def first_index(key0: Value, key1: Value, rows: Value, row: Value) -> Value:
    """Return the index in the global array of an array's first element, for a key with rows.

    rows: elements of the array's first axis, -1 for an array without axes.  row: elements of a row.
    """
    return select((key1 >> 32) == rows, (key0 >> 32) * row, 0)


def _words(key0: Value, key1: Value, index: Value, stream: int) -> tuple[Value, Value]:
    low, high = index.astype("int32"), (index >> 32).astype("int32")
    return threefry(key0.astype("int32"), key1.astype("int32"), low, high + stream)


def _joined(words: tuple[Value, Value]) -> Value:
    low, high = (w.astype("int64") for w in words)
    return (low & _LOW) | (high << 32)


def bits(key0: Value, key1: Value, index: Value) -> Value:
    """Return 64 random bits for each element, as int64."""
    return _joined(_words(key0, key1, index, BITS))


def bits_at(key0: Value, key1: Value, at: Value) -> Value:
    """Return the bits of elements by their indices, which are an operand of the formula."""
    return bits(key0, key1, at)


def split(key0: Value, key1: Value, index: Value) -> Value:
    """Return key words: elements 2 i and 2 i + 1 are the two words of key i."""
    return _key_word((index & 1) == 0, _words(key0, key1, index >> 1, SPLIT), key0, key1)


def _key_word(is_first: Value, words: tuple[Value, Value], key0: Value, key1: Value) -> Value:
    """Return a word of a new key, which has the rows of the key that it comes from."""
    new = select(is_first, *(w.astype("int64") for w in words))
    return (new & _LOW) | (select(is_first, key0, key1) & ~_LOW)


def fold_in(key0: Value, key1: Value, data: Value, index: Value) -> Value:
    """Return the two words of a key for (key, data): data is int64, repeated for both elements."""
    words = _words(key0, key1, data & 0x3FFFFFFFFFFFFFFF, FOLD)
    return _key_word(index == 0, words, key0, key1)


def for_rows(key: Value, first: Value, count: Value, index: Value) -> Value:
    """Return the two words of a key with other rows: `key` is its words, one element each."""
    return (key & _LOW) | (select(index == 0, first, count) << 32)


def uniform32(key0: Value, key1: Value, index: Value) -> Value:
    """Return float32 in [0, 1): multiples of 2**-24."""
    w0, _ = _words(key0, key1, index, BITS)
    return (w0 >> 8).astype("float32") * 2.0**-24


def uniform64(key0: Value, key1: Value, index: Value) -> Value:
    """Return float64 in [0, 1): multiples of 2**-53."""
    return (bits(key0, key1, index) >> 11).astype("float64") * 2.0**-53


def normal32(key0: Value, key1: Value, index: Value) -> Value:
    """Return float32 of the standard normal distribution, at most 6.66 in size."""
    w0, w1 = _words(key0, key1, index, BITS)
    u = (w0.unsigned_to("float32") + 1.0) * 2.0**-32
    return sqrt(log(u) * -2.0) * cos_turns(w1)


def normal64(key0: Value, key1: Value, index: Value) -> Value:
    """Return float64 of the standard normal distribution, at most 8.58 in size."""
    u = ((bits(key0, key1, index) >> 11) + 1).astype("float64") * 2.0**-53
    return sqrt(log(u) * -2.0) * cos_turns(_joined(_words(key0, key1, index, SECOND)))


def integers(key0: Value, key1: Value, low: Value, count: Value, index: Value) -> Value:
    """Return int64 in [low, low + count), count <= 2**32: low + floor(bits * count / 2**64).

    The products stay in 64 bits, of which the top one is a digit and not a sign; a number is at most
    2**-32 more likely than another (Lemire 2019, without its rejection).
    """
    w0, w1 = (w.astype("int64") & _LOW for w in _words(key0, key1, index, BITS))
    return low + ((w1 * count + ((w0 * count) >> 32)) >> 32)


@functools.cache
def dropout(rate: float) -> Formula:
    """Return the formula x / (1 - rate) where uniform32 of an element is at least `rate`, else 0.

    Both dtypes have the same mask. The key's words are int32, so that a vector has as many elements as of x.
    """
    least, scale = math.ceil(rate * 2**24), 1 / (1 - rate)

    def formula(x: Value, key0: Value, key1: Value, index: Value) -> Value:
        w0, _ = _words(key0, key1, index, BITS)
        return select((w0 >> 8) >= least, x * scale, 0.0)

    return formula
