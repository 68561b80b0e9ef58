# SPDX-License-Identifier: Apache-2.0
"""Which weights of a run are kept: judged on what is held out, the best so far stay.

The run folder has the best of the run, an output file those that are better than what stood there
before. What is best is part of the training state, so a judgement must come before the save.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omnistream_ros.model import ModelError, OmniStream, load_model
from omnistream_ros.training.clip_files import VALIDATION_PERIOD, validation_clips
from omnistream_ros.training.curve import LossTable
from omnistream_ros.training.export import export_weights
from omnistream_ros.training.held_out import HeldOutScore, clips_of_recordings, score_clips
from omnistream_ros.training.state import Progress
from omnistream_ros.training.train_settings import TrainSettings

FRAMES = 16  # of a held-out clip
JUDGED_BY = ("judge", "names")  # what a score is known by, beside its step and number of clips


def judge_name(settings: TrainSettings) -> str:
    """By what weights are judged, for the card."""
    names = ", ".join(path.resolve().name for path in settings.held_out)
    return f"clips of {names}, by which the weights were chosen" if names else "rendered clips"


class BestWeights:
    """Judges `model` (the moving average) as it is trained; of a team, in the first process alone.

    Args:
        record: what the card says about the training so far, when it is asked.

    Raises:
        RecordingError: a recording that shall judge cannot be read.
    """

    def __init__(
        self,
        model: OmniStream,
        settings: TrainSettings,
        progress: Progress,
        table: LossTable,
        record: Callable[[], dict[str, Any]],
        report: Callable[[str], None],
    ) -> None:
        self._model, self._settings, self._progress = model, settings, progress
        self._table, self._record, self._report = table, record, report
        self._file = settings.run / "best.safetensors"
        self._names: list[str] = []  # of rendered clips
        if settings.held_out:
            self._clips = clips_of_recordings(settings.held_out, model.config, length=FRAMES)
        else:
            count = settings.validation_count
            rendered = validation_clips(settings.clips, limit=count, length=FRAMES)
            self._names, self._clips = list(rendered), list(rendered.values())

    def judge_what_is_there(self) -> None:
        """Scores the file that the best weights would replace, for only better ones shall, and
        before the first step of a run the weights to begin with. Of a run that goes on: scores
        again what was judged otherwise, by other clips or by a number that is not compared any
        more.
        """
        p, output = self._progress, self._settings.output
        if not self._clips:
            return
        if output is not None and output.exists() and not self._comparable(p.there):
            p.there = self._score_file(output)
        if p.best and not self._comparable(p.best):
            self._report("what is best so far was judged otherwise: it is judged again")
            again = self._score_file(self._file)
            p.best = again and {**again, "step": p.best["step"]}
        elif not p.step and self._settings.start_from is not None:
            self.judge()

    def _score_file(self, path: Path) -> dict[str, Any]:
        """The score of a weights file; empty when it has none."""
        try:
            there = load_model(path)[0]
        except ModelError as error:
            self._report(f"{error}; it will be replaced")
            return {}
        if there.depth_head is None:
            return {}
        score = score_clips(there, self._clips)
        self._report(f"{path}, held-out clips: {score}")
        return self._found(score)

    def judge(self) -> HeldOutScore | None:
        """Scores the weights and keeps them when they are the best so far."""
        self._table.draw()
        if not self._clips:
            self._report(
                f"no held-out clip of {FRAMES} frames (a long take whose number is a multiple of "
                f"{VALIDATION_PERIOD}; render more, or give --held-out): weights are not judged"
            )
            return None
        p, output = self._progress, self._settings.output
        score = score_clips(self._model, self._clips)
        self._table.add_score(p.step, score)
        mark = ""
        if self._beats(score, p.best):
            p.best, mark = self._found(score), "  (best so far)"
            export_weights(self._file, self._model, self._record())
            if output is not None and self._beats(score, p.there):
                export_weights(output, self._model, self._record())
        self._report(f"step {p.step}  held-out clips: {score}{mark}")
        return score

    def out_of_patience(self) -> bool:
        """Whether so many judgements have brought nothing better that the run shall end."""
        s, p = self._settings, self._progress
        if s.patience is None or "step" not in p.best:
            return False
        judgements = (p.step - p.best["step"]) // s.judge_period
        if judgements < s.patience:
            return False
        self._report(f"no better than step {p.best['step']} in {judgements} judgements: ended")
        return True

    def leave(self) -> None:
        """Sees to it that a run leaves a file: the last weights where nothing judges them, and
        those of the run in an output file that is not there."""
        output, which = self._settings.output, "best" if self._clips else "last"
        if not self._clips:
            export_weights(self._file, self._model, self._record())
            self._report(f"{self._file}: the last weights of the run, not judged")
        if output is None or not self._file.exists():
            return
        if not output.exists():
            output.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self._file, output)
            self._report(f"{output}: the {which} weights of the run")
        elif not self._clips:
            self._report(
                f"{output} stays as it is: nothing says whether the last weights of the run, in "
                f"{self._file}, are better"
            )

    def _judges(self) -> dict[str, Any]:
        """What weights are judged by. The names tell clips that rendering has added since."""
        name = judge_name(self._settings)
        return {"clips": len(self._clips), "judge": name, "names": self._names}

    def _found(self, score: HeldOutScore) -> dict[str, Any]:
        """A score with its step, and by what it was judged."""
        return {"step": self._progress.step, **self._judges(), **score.as_dict()}

    def _comparable(self, old: dict[str, Any]) -> bool:
        """Whether an old score is of the same clips, and has the number that decides.

        Rendering may have added held-out clips since, a resumed run been given other recordings, or
        the state be of a version that went by delta.
        """
        return "log_mae" in old and all(old.get(k) == v for k, v in self._judges().items())

    def _beats(self, score: HeldOutScore, old: dict[str, Any]) -> bool:
        """Whether a score is better than an old one, or cannot be compared with it."""
        return not self._comparable(old) or score.better_than(old)
