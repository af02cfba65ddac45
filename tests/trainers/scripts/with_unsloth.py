"""Fine-tuning with unsloth as its pages show it, of all parameters, on a CPU."""

import sys

from datasets import load_dataset
from trl import SFTConfig, SFTTrainer
from unsloth import FastLanguageModel  # first, as it asks

host, data, output, batch, accumulation = sys.argv[1:]
model, tokenizer = FastLanguageModel.from_pretrained(host, load_in_4bit=False, full_finetuning=True, dtype=None)
args = SFTConfig(
    output_dir=output, per_device_train_batch_size=int(batch), gradient_accumulation_steps=int(accumulation),
    learning_rate=1e-3, max_steps=2, logging_steps=1, save_steps=1, lr_scheduler_type="constant", report_to="none",
    use_cpu=True, bf16=False, fp16=False,
)  # fmt: skip
dataset = load_dataset("json", data_files=data, split="train")
trainer = SFTTrainer(model=model, processing_class=tokenizer, train_dataset=dataset, args=args)
trainer.train()
trainer.save_model(output)
