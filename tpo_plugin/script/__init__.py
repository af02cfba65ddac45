"""`tpo run`: a training script that knows nothing of TPO, unchanged, with TPO on the model that its trainer gets.

`tpo run` starts the script with its settings in the environment (`settings`) and the folder `startup` first on
PYTHONPATH. Python imports the `sitecustomize` of that folder at its start, in the script and in every process that the
script's launcher starts. There the imports of some libraries are waited for (`imports`): tokenizers get the heads'
tokens when they are loaded, data sets keep their rows' tasks through every map (`maps`, `samples`), and a Trainer, when
it is made, becomes one that puts TPO onto its model (`trainer`) and reads the tasks of its rows (`rows`). What does not
arrive stops the run (`arrivals`, `literal`). A loop of Accelerate or Lightning gets TPO too (`loops`, `loop_parts`).
"""
