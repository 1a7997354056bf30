"""Train a small model from plain Python: the same as `omop-gpt train` does.

python examples/train_from_python.py W/patient_sequence W/model
"""

import logging
import sys

from omop_gpt.train import TrainConfig, train_step, training_arguments
from transformers import AutoModelForCausalLM, AutoTokenizer

if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    data_folder, output_dir = sys.argv[1:]

    config = TrainConfig(
        data_folder=data_folder,
        model_type="llama",
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=512,
    )
    # Any of transformers' TrainingArguments; the rest is as on the command line.
    arguments = training_arguments(
        output_dir=output_dir,
        num_train_epochs=10,
        learning_rate=2e-3,
        load_best_model_at_end=True,
        seed=42,
    )
    result = train_step(config, arguments)
    if result["eval_loss"] is not None:
        print(f"{result['eval_nats_per_patient']:.2f} nats per validation patient")

    # The folder is a plain Hugging Face one.
    model = AutoModelForCausalLM.from_pretrained(output_dir)
    tokenizer = AutoTokenizer.from_pretrained(output_dir)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer):,} tokens")
