"""A loop with Accelerate, as its pages show it."""

import sys

import torch
from accelerate import Accelerator
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling, get_scheduler, set_seed

host, data, output, batch, accumulation = sys.argv[1:]
set_seed(0)
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=int(accumulation))
tokenizer = AutoTokenizer.from_pretrained(host)
model = AutoModelForCausalLM.from_pretrained(host)
dataset = load_dataset("json", data_files=data, split="train")


def tokenise(rows):
    return tokenizer(rows["text"])


dataset = dataset.map(tokenise, batched=True, remove_columns=dataset.column_names)
collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
loader = torch.utils.data.DataLoader(dataset, batch_size=int(batch), shuffle=True, collate_fn=collate)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
schedule = get_scheduler("constant", optimizer)
model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)

for epoch in range(2):
    model.train()
    for inputs in loader:
        with accelerator.accumulate(model):
            loss = model(**inputs).loss
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    accelerator.save_state(f"{output}/checkpoint-{epoch}")

accelerator.unwrap_model(model).save_pretrained(output)
