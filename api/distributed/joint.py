"""The end of a step of ranks that share an update, as launches that one native call runs with the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from treepie.kernels.program import BoundTable, TableSequence
from treepie.kernels.ranks import Exchange, ExchangeTable, combined as combined

from .waiting import Waiter

if TYPE_CHECKING:
    from .node import Arrival, Collective, Node


class JointStep:
    """Runs the programs of a step on this rank, and meets the other ranks of the node on the way.

    Its collectives are those of ranks that call the methods one by one, and meet these: a sum of parts of the
    gradients; the sum of a table with a row for each shard (loss times weight, weight, examples) and for each
    rank (norm of its part, whether it needs new buffers, elements of its part); a gathering of parts.

    parts: int64 (1 + n, 3): from the second row on, the shard of a part, and its examples.
    table: the sum of the tables.
    """

    #: How a step ended: wholly, or in one of the parts' programs, at the exchange, or in the update.
    WHOLE, PART, EXCHANGE, UPDATE = range(4)

    def __init__(
        self,
        node: Node,
        waiter: Waiter,
        collectives: Sequence[Collective],
        exchange: Exchange,
        values: NDArray[np.float64],
    ) -> None:
        """Take what is exchanged, and where the total weight, the total loss and the norm are written.

        collectives: the three of a step, as `Node.announce` takes them.
        """
        self._node, self._waiter, self._collectives = node, waiter, collectives
        self._launches = ExchangeTable(exchange, values)
        self.parts, self.table = self._launches.parts, self._launches.table
        self._tables: list[BoundTable] = []
        self._sequence = TableSequence([])

    def run(self, parts: Sequence[BoundTable], results: Sequence[int], update: BoundTable) -> tuple[int, int]:
        """Run the programs of the parts, the exchange, and the program of the update.

        results: of each part, the address of its loss and its weight.

        Returns how the step ended, and the launch that reported an error.
        """
        launches = self._launches
        for k, address in enumerate(results):
            launches.bind(k, address)
        tables = [*parts, launches.before, update, launches.after]
        if tables != self._tables:
            self._tables, self._sequence = tables, TableSequence(tables)
        arrivals = self._node.announce(self._collectives, launches.places, self._waiter.spin_ns)
        table = row = 0
        while True:
            table, row = self._sequence.run(table, row)
            left = len(tables) - table
            if table < 0:
                return self.WHOLE, -1
            if left > 3:
                self._node.withdraw(3)
                return self.PART, row
            if left == 2:
                self._node.withdraw(1)
                return self.UPDATE, row
            if left == 3 and row not in launches.meets:
                self._node.withdraw(1)
                return self.EXCHANGE, row
            self._wait(arrivals, 2 if left == 1 else launches.meets.index(row))

    def _wait(self, arrivals: Sequence[Arrival], k: int) -> None:
        """Wait for the ranks that are late at a collective."""
        what = ("a sum of parts", "a sum of the parts' losses", "a gathering of parts")[k]
        self._node.withdraw(2 - k)
        self._waiter.wait(arrivals[k], lambda: what)
        self._node.withdraw(k - 2)
