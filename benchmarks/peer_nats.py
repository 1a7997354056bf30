"""Nats per patient of a trained CEHR-GPT: run by the Python that has cehrgpt.

    python peer_nats.py MODEL SEQUENCES SPLIT CONTEXT > JSON

Sums its language-model loss over what follows the four demographic tokens, [END]
included, one patient at a time; patients longer than the context are left out, and
named, so that the other model leaves them out too.
"""

import json
import sys

import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from cehrgpt.models.hf_cehrgpt import CEHRGPT2LMHeadModel
from cehrgpt.models.tokenization_hf_cehrgpt import CehrGptTokenizer

DEMOGRAPHICS = 4


def main() -> None:
    """Print {person_id: nats} of the persons of a split."""
    folder, sequences, split, context = sys.argv[1:]
    tokenizer = CehrGptTokenizer.from_pretrained(folder)
    model = CEHRGPT2LMHeadModel.from_pretrained(folder).eval()
    table = pq.read_table(
        sequences, columns=["person_id", "concept_ids", "ages", "split"]
    )
    table = table.filter(pc.equal(table["split"], split))
    nats = {}
    for row in table.to_pylist():
        ids = [*tokenizer.encode(row["concept_ids"]), tokenizer.end_token_id]
        if len(ids) > int(context):
            continue
        ages = [*row["ages"], max(row["ages"])]
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([ids]), ages=torch.tensor([ages])
            ).logits[0]
        loss = torch.nn.functional.cross_entropy(
            logits[DEMOGRAPHICS - 1 : -1].float(),
            torch.tensor(ids[DEMOGRAPHICS:]),
            reduction="sum",
        )
        nats[row["person_id"]] = float(loss)
    print(json.dumps(nats))


if __name__ == "__main__":
    main()
