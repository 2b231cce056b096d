"""Scores of a checkpoint (`python -m model.evaluation`), the detector that scenes are scored with, and model cards.

evaluate            command line; loads the checkpoint and runs one of the benchmarks
evaluate_emoji      R-precision of single emoji, and how much of it is memorisation (features: the feature extractor)
evaluate_scenes     GenEval's questions about composed scenes (scene_questions), answered by detector
breadth             R-precision of single things among a thousand
validation_loss     loss of any checkpoint on any data set, reconstruction and use of codes
train_detector      trains that detector on renders
generation          one image per prompt from a serving engine
cards               publish a run with its scores and a model card
"""
