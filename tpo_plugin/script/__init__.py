"""`tpo run`: a training script that knows nothing of TPO, unchanged, with TPO on the model that its trainer gets.

`tpo run` starts the script with its settings in the environment (`settings`) and the folder `startup` first on
PYTHONPATH. Python imports the `sitecustomize` of that folder at its start, in the script and in every process that the
script's launcher starts. There the import of two modules of transformers is waited for (`imports`): tokenizers get the
heads' tokens when they are loaded, and a Trainer, when it is made, becomes one that puts TPO onto its model (`trainer`)
and reads the tasks of its rows (`rows`).
"""
