"""A run whose host lies on a hub: trained, pushed, and loaded by name. `python hub_run.py FOLDER`, with HF_ENDPOINT."""

import json
import shutil
import sys
from pathlib import Path

import tiny_run
import torch
from huggingface_hub import HfApi, constants

import tpo_plugin as tpo
from tpo_plugin.export import export_run
from tpo_plugin.training.run import load_run, train

torch.set_num_threads(1)
folder = Path(sys.argv[1])
tiny_run.install_head()
config = tiny_run.write_world(folder, stages=["stage2"], model="org/host")
api = HfApi(token="hf_test")
api.create_repo("org/host")
first = api.upload_folder(repo_id="org/host", folder_path=folder / "host").oid
shutil.rmtree(folder / "host")
run = train(config)
expected = load_run(run)

pushed = tpo.push_to_hub(run, "org/run", token="hf_test")
export_run(run, folder / "exported")
tpo.push_to_hub(folder / "exported", "org/exported", revision="v1", token="hf_test")
# Whoever changes the host on the hub later changes no run.
(folder / "config.json").write_text("{}")
api.upload_file(path_or_fileobj=folder / "config.json", path_in_repo="config.json", repo_id="org/host")
shutil.rmtree(run)
shutil.rmtree(folder / "exported")
shutil.rmtree(constants.HF_HUB_CACHE)

ids = {"input_ids": torch.tensor([[1, 4, 5, 6, 7]])}
found = load_run("org/run")
with torch.no_grad():
    same = torch.equal(found(**ids).logits, expected(**ids).logits)
refused = []
for attempt in (
    lambda: load_run("org/run", revision="v9"),
    lambda: load_run("org/none"),
    lambda: tpo.load_heads("org/exported"),
):
    try:
        attempt()
    except tpo.TPOError as error:
        refused.append(str(error))
heads = tpo.load_heads("org/exported", revision="v1")
answer = expected.tpo.generate(**ids, route="point", max_new_tokens=6, do_sample=False)
states = expected(input_ids=answer.sequences, output_hidden_states=True).hidden_states[-1]
points = [heads.predict(answer.sequences, states, prompt_length=5)[0][0].value, answer.predictions[0][0].value]
torch.testing.assert_close(*points, rtol=0, atol=1e-5)
result = {"same": same, "first": first, "pushed": pushed, "refused": refused}
(folder / "result.json").write_text(json.dumps(result))
