"""Training of clean and robust models, and the folders they are kept in."""

from robseg.training.fit import PLAIN, ROBUST, Progress, Recipe, fit
from robseg.training.model_folder import ModelFolder, read_model_folder, save_model

__all__ = ["PLAIN", "ROBUST", "ModelFolder", "Progress", "Recipe", "fit", "read_model_folder", "save_model"]
