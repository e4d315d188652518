"""The teacher: a ViT whose depth is to be understood."""

from experiments.stage import Stage
from experiments.stages.teacher.page import page
from experiments.stages.teacher.run import Settings, TeacherResult, ready, run

STAGE: Stage = Stage("teacher", Settings, TeacherResult, run, page=page, ready=ready)
