"""What the core and the region head do with what they require and nothing else: `python bare.py`, in an environment of
its own. TPO on a tiny Qwen2, two steps under `wrap_trainer`, saving, loading, generating.
"""

import sys
import tempfile

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from tpo_plugin import apply_tpo, load_tpo, wrap_trainer

WORDS = ["<pad>", "<unk>", "<eos>", "where", "is", "it", "here", "."]


def tokenizer():
    found = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<eos>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=found, **names)


def host():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(vocab_size=32, num_key_value_heads=2, **sizes))


model = apply_tpo(host(), tokenizer(), heads=["region"])
trigger, task = model.tpo.token_ids["region"]
ids = torch.tensor([[3, 4, 5, 6, trigger, task, 2]])
labels = torch.tensor([[-100, -100, -100, 6, trigger, -100, 2]])


def collate(rows):
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.6]]).repeat(len(rows), 1)
    batch = {"input_ids": ids.repeat(len(rows), 1), "labels": labels.repeat(len(rows), 1)}
    return batch | {"task_targets": {"region": {"boxes_xyxy": boxes}}}


with tempfile.TemporaryDirectory() as folder:
    options = {"max_steps": 2, "report_to": [], "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    args = transformers.TrainingArguments(folder, remove_unused_columns=False, **options)
    dataset = torch.utils.data.TensorDataset(torch.arange(16))
    wrap_trainer(transformers.Trainer)(model=model, args=args, train_dataset=dataset, data_collator=collate).train()
    losses = model.tpo.last_output.losses
    assert losses.keys() == {"mllm", "assign", "region"}
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values()), losses
    model.tpo.save_pretrained(folder)
    loaded = load_tpo(host(), folder, tokenizer())
    answers = loaded.tpo.generate(input_ids=ids[:, :4], max_new_tokens=4, route="region")
    assert len(answers.predictions[0]) >= 1

print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, transformers {transformers.__version__}: works")
