"""A module of Lightning, as its pages show it."""

import json
import sys

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

host, data, output, batch, accumulation = sys.argv[1:]
lightning.seed_everything(0)
tokenizer = AutoTokenizer.from_pretrained(host)


class Rows(torch.utils.data.Dataset):
    def __init__(self, path):
        with open(path) as file:
            self.rows = [json.loads(line) for line in file]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]["text"]


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = AutoModelForCausalLM.from_pretrained(host)

    def training_step(self, inputs, index):
        loss = self.model(**inputs).loss
        self.log("train_loss", loss, batch_size=len(inputs["input_ids"]))
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.model.parameters(), lr=1e-3)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(Rows(data), batch_size=int(batch), shuffle=True, collate_fn=collate)


def collate(texts):
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    return {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "labels": labels}


checkpoints = ModelCheckpoint(dirpath=output, filename="checkpoint-{step}", every_n_epochs=1, save_top_k=-1)
trainer = lightning.Trainer(
    accelerator="cpu", max_epochs=2, accumulate_grad_batches=int(accumulation), callbacks=[checkpoints], logger=False
)
module = Module()
trainer.fit(module)
module.model.save_pretrained(output)
