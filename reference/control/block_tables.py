"""The block tables of a runner's rows, followed from plan to plan without a runner: for traces and for verification."""

from __future__ import annotations

from quire.reference.control.plan import StepPlan


class BlockTables:
    """The block tables of all live rows, followed plan by plan: what a runner does with a plan, without the tensors."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.rows: dict[int, list[int]] = {}

    def apply(self, plan: StepPlan) -> dict[int, list[int] | None]:
        """Take over the plan's changes; return the tables it changed, None for a row that ended."""
        changed: dict[int, list[int] | None] = {}
        for row in plan.ends:
            self.rows.pop(row, None)
            changed[row] = None
        for start in plan.starts:
            self.rows[start.row] = []
            changed[start.row] = self.rows[start.row]
        for fork in plan.forks:
            if fork.row != fork.parent_row:
                blocks = -(-fork.length // self.block_size)
                self.rows[fork.row] = self.rows[fork.parent_row][:blocks]
                changed[fork.row] = self.rows[fork.row]
        for seq in plan.seqs:
            if seq.new_blocks:  # what the row had behind ``start`` was reserved for drafts, and given back
                self.rows[seq.row][-(-seq.start // self.block_size) :] = seq.new_blocks
                changed[seq.row] = self.rows[seq.row]
        for _, dst, row, index in plan.copies:
            self.rows[row][index] = dst
            changed[row] = self.rows[row]
        return changed
