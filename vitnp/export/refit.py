"""Fit a finished run again without the photographs that a person has rejected."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from vitnp.checkpoints.load import load_vit
from vitnp.errors import CheckpointError, OutputError, UsageError
from vitnp.export.apply import original_results
from vitnp.export.collection_outputs import DECISIONS_FILE, RUN_RECORD
from vitnp.export.collection_run import CollectionRun
from vitnp.export.decisions import Decisions
from vitnp.export.naming import output_stems
from vitnp.export.run_record import read_run_record
from vitnp.io.find import Photograph
from vitnp.io.stamp import canonical_json
from vitnp.method.regions import RegionRule
from vitnp.options import Settings
from vitnp.segmenter import Segmenter

# Parameters of a fit that may differ: the number of categories is that which was found.
_NOT_COMPARED = ("categories", "version")


def refit(
    out: str | os.PathLike[str],
    new_out: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    **keywords: Any,
) -> CollectionRun:
    """Return a run with the settings of a finished one, without the photographs that were rejected.

    These are the photographs whose mask is wrong or that show no object, by the decisions that are applied
    (:func:`vitnp.export.apply.apply_decisions`). Classes are found anew; names and merges of the finished run do not
    apply to them.

    Parameters
    ----------
    out : path
        Output folder of the finished run, which stays as it is.
    new_out : path
        Output folder of the new run.
    model : str or path, optional
        Checkpoint of the finished run; needed if that was a file, because a run knows only its name and its hash.
    **keywords
        Further arguments of :class:`vitnp.segmenter.Segmenter`, such as `n_threads`.

    Returns
    -------
    CollectionRun
        Not begun yet; its method `outcomes` does the work.

    Raises
    ------
    UsageError
        If nothing was decided, the folders are the same, or the network is not that of the finished run.
    OutputError
        If ``run.json`` is missing or damaged, or the folder holds no results.
    """
    out, new_out = Path(out), Path(new_out)
    if out.resolve() == new_out.resolve():
        raise UsageError(f"{new_out}: this is the folder of the finished run; name another one")
    photographs = _accepted(out)
    parameters = read_run_record(out / RUN_RECORD).get("parameters", {})
    try:
        segmenter = _segmenter(parameters, model, keywords)
        fitted = json.loads(canonical_json(segmenter.fit_parameters))
        different = [name for name in fitted if name not in _NOT_COMPARED and fitted[name] != parameters[name]]
        save, polygons = list(parameters["save"]), parameters["polygons"]
    except (KeyError, TypeError):
        raise OutputError(
            f"{out / RUN_RECORD}: this is missing, damaged or of an older version; run `vitnp segment` again"
        ) from None
    if different:
        raise UsageError(
            f"the network is not as in the finished run ({', '.join(different)} differ); run `vitnp segment` with the "
            "options of that run"
        )
    return CollectionRun(
        segmenter, photographs, output_stems(photographs, new_out), save, out=new_out, polygons=polygons
    )


def _accepted(out: Path) -> list[Photograph]:
    """Return the photographs that were not rejected."""
    results = original_results(out)
    path = out / DECISIONS_FILE
    decisions = Decisions.read(path, results.names, results.photographs()) if path.exists() else Decisions()
    rejected = {number for number, decision in decisions.photographs.items() if decision in ("wrong", "empty")}
    if not rejected:
        raise UsageError(f"{out}: no photograph was rejected there, so there is nothing to leave out")
    return [
        Photograph(photograph.path, Path(photograph.name))
        for number, photograph in enumerate(results.photographs(), 1)
        if number not in rejected and photograph.path is not None
    ]


def _segmenter(parameters: dict[str, Any], model: str | os.PathLike[str] | None, keywords: dict[str, Any]) -> Segmenter:
    """Return a segmenter with the settings that a run has recorded."""
    try:
        vit = load_vit(
            parameters["model"] if model is None else model,
            heads=parameters["heads"],
            pos_embed=parameters["pos_embed"],
        )
    except CheckpointError as error:
        advice = f"; give --model FILE, the checkpoint {parameters['model']} of the run" if model is None else ""
        raise CheckpointError(f"{error}{advice}") from None
    names = ("facet", "layer", "stride", "max_tokens", "max_pixels", "refine", "seed", "min_confidence", "alpha")
    settings = Settings(short_side=parameters["size"], **{name: parameters[name] for name in names})
    return Segmenter(
        vit.to(precision=parameters["precision"]),
        parameters["classes"],
        n_categories=parameters["categories"],
        consistency=parameters["consistency"],
        regions=RegionRule(**parameters["regions"]),
        fit_patches=parameters["fit_patches"],
        **{name: getattr(settings, name) for name in (*names, "short_side")},
        **keywords,
    )
