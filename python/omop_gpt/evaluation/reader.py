"""A small network that reads histories in order, to tell synthetic ones from real ones.

What features in a few numbers miss (discriminator.py) may lie in the order of things.
An item is a visit, an event of it or a loose event; with each goes how long after the
one before it is. Two layers of gated recurrent units (Cho et al., 2014) read the first
ITEMS of a person; what they made of each item, at its largest and on average, decides.
A transformer of that size learns no order from some thousand histories.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

if TYPE_CHECKING:
    import duckdb

ITEMS = 127  # of a history
WORDS = 2_000  # the most frequent; all others are one
PADDING, START, OTHER = range(3)  # words that say nothing
LONGEST = (0, 1, 7, 14, 30, 60, 90, 180, 365, 1095)  # days of each length of gap
EPOCHS = 3
BATCH = 32
WIDTH = 64
LEARNING_RATE = 5e-3


class Reader:
    """A classifier of rows of `histories`, with the methods that scikit-learn's have.

    `words` (N, ITEMS + 1): what each person's items say, after START; PADDING at the
    end. `gaps` of the same shape: the number of the length of the gap before each.
    """

    def __init__(self, words: np.ndarray, gaps: np.ndarray, seed: int) -> None:
        """Keep the histories."""
        self.words = torch.from_numpy(words)
        self.gaps = torch.from_numpy(gaps)
        self.lengths = (words != PADDING).sum(axis=1)
        self.seed = seed

    def fit(self, rows: np.ndarray, is_synthetic: np.ndarray) -> None:
        """Learn from rows (R,) which are synthetic (R,), in EPOCHS epochs."""
        rng = np.random.default_rng(self.seed)
        labels = torch.from_numpy(is_synthetic.astype(np.int64))
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            self.network = Network(int(self.words.max()) + 1).train()
            optimiser = torch.optim.AdamW(
                self.network.parameters(), lr=LEARNING_RATE, weight_decay=0.01
            )
            steps = EPOCHS * -(-len(rows) // BATCH)
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimiser, LEARNING_RATE, total_steps=steps
            )
            for _ in range(EPOCHS):
                for batch in self.batches(rows, rng):
                    loss = torch.nn.functional.cross_entropy(
                        self.read(rows[batch]), labels[batch]
                    )
                    optimiser.zero_grad()
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
                    optimiser.step()
                    schedule.step()

    @torch.no_grad()
    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        """Return the chances that rows (R,) are real and synthetic: (R, 2)."""
        self.network.eval()
        chances = np.empty((len(rows), 2))
        for batch in self.batches(rows):
            chances[batch] = self.read(rows[batch]).softmax(dim=1).numpy()
        return chances

    def batches(
        self, rows: np.ndarray, rng: np.random.Generator | None = None
    ) -> list[np.ndarray]:
        """Cut rows into batches of about one length; in an order of chance, if any."""
        lengths = self.lengths[rows]
        chance = rng.random(len(rows)) if rng else np.zeros(len(rows))
        # lengths of about one size are mixed anew
        order = np.argsort(lengths * (1 + 0.2 * chance), kind="stable")
        cuts = [order[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        if rng:
            rng.shuffle(cuts)
        return cuts

    def read(self, rows: np.ndarray) -> torch.Tensor:
        """Pass rows (R,) through the network, as long as their longest is: (R, 2)."""
        lengths = torch.from_numpy(self.lengths[rows])
        length = int(lengths.max())
        return self.network(
            self.words[rows, :length].long(), self.gaps[rows, :length].long(), lengths
        )


class Network(torch.nn.Module):
    """What reads words and gaps (R, L) of so many items (R,): logits (R, 2)."""

    def __init__(self, words: int) -> None:
        """Make it for so many words."""
        super().__init__()
        self.words = torch.nn.Embedding(words, WIDTH, padding_idx=PADDING)
        self.gaps = torch.nn.Embedding(len(LONGEST) + 1, WIDTH)
        self.units = torch.nn.GRU(WIDTH, WIDTH, num_layers=2, batch_first=True)
        self.decide = torch.nn.Linear(2 * WIDTH, 2)

    def forward(
        self, words: torch.Tensor, gaps: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """Read histories item by item."""
        packed = pack_padded_sequence(
            self.words(words) + self.gaps(gaps),
            lengths,
            batch_first=True,
            enforce_sorted=False,
        )
        made, _ = pad_packed_sequence(self.units(packed)[0], batch_first=True)
        is_item = (words != PADDING)[:, :, None]
        largest = made.masked_fill(~is_item, -torch.inf).amax(dim=1)
        mean = (made * is_item).sum(dim=1) / lengths[:, None]
        return self.decide(torch.cat([largest, mean], dim=1))


def histories(con: duckdb.DuckDBPyConnection) -> tuple[np.ndarray, np.ndarray]:
    """Read `words` and `gaps` of Reader of temp table compared_persons, by its rows."""
    items = con.execute(
        """
        with items as (
            select
                row, visit_start_date as day, visit_order, 0 as is_event,
                visit_start_date as event_date, visit_concept_id as concept_id
            from compared_persons
            inner join evaluation_private.visits using (cohort, person_id)
            union all
            select
                row, coalesce(visit_start_date, event_date), visit_order, 1,
                event_date, concept_id
            from compared_persons
            inner join evaluation_private.events using (cohort, person_id)
            left join evaluation_private.visits
                using (cohort, person_id, visit_order)
        ),
        placed as (
            select
                *,
                row_number() over history as place,
                coalesce(day - lag(day) over history, 0) as gap
            from items
            window history as (
                partition by row
                order by
                    day, visit_order nulls last, is_event, event_date, concept_id
            )
        ),
        ranked as (
            select
                is_event, concept_id,
                row_number() over (
                    order by count(*) desc, is_event, concept_id
                ) - 1 as number
            from placed
            group by 1, 2
        )
        select
            row, cast(place as int) as place, cast(gap as int) as gap,
            cast(least(number, $1) as int) as number
        from placed
        inner join ranked using (is_event, concept_id)
        where place <= $2
        """,
        [WORDS, ITEMS],
    ).fetchnumpy()
    (persons,) = con.execute("select count(*) from compared_persons").fetchone()
    words = np.zeros((persons, ITEMS + 1), dtype=np.int16)
    gaps = np.zeros_like(words)
    words[:, 0] = START
    place = items["row"], items["place"]
    words[place] = np.where(
        items["number"] == WORDS, OTHER, OTHER + 1 + items["number"]
    )
    gaps[place] = np.searchsorted(LONGEST, items["gap"])
    return words, gaps
