"""What is written for each photograph: its features, their pictures, and the numbers behind these.

To add an output, add its name to ``FEATURE_OUTPUTS`` in :mod:`vitnp.options`, its files to :meth:`FeatureOutputs.files`
and a branch to :meth:`FeatureOutputs.write`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from vitnp import __version__
from vitnp.errors import ImageError
from vitnp.features.feature_file import write_file
from vitnp.features.pictures import PictureMaker
from vitnp.features.record import FeatureRecord
from vitnp.features.spec import FeatureSpec
from vitnp.io import write
from vitnp.io.decode import decode_image
from vitnp.io.find import Photograph
from vitnp.io.source import fingerprint
from vitnp.io.stamp import parameters_hash
from vitnp.vit.model import ViT

# Outputs for which the attention of each head is needed.
OF_HEADS = ("attention", "maps")


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureOutputs:
    """The files of each photograph in one run.

    Attributes
    ----------
    which : tuple of str
        Among :data:`vitnp.options.FEATURE_OUTPUTS`.
    form : {"npz", "safetensors"}
        Format of the file of features.
    metadata : mapping
        See :func:`metadata_of`.
    heads : int
        Number of attention heads.
    maker : PictureMaker
        Draws the pictures. It has a basis if `which` names "pca".
    alpha : str
    max_pixels : int
        How photographs are decoded.
    """

    which: tuple[str, ...]
    form: str
    metadata: Mapping[str, object]
    heads: int
    maker: PictureMaker
    alpha: str
    max_pixels: int

    def files(self, stem: Path) -> dict[str, Path]:
        """Return the files of a photograph by the name of the output; those of heads have names of their own."""
        return {
            name: Path(f"{stem}{suffix}") for name, suffix in output_suffixes(self.which, self.form, self.heads).items()
        }

    def stamp(self, name: str, photograph: str) -> dict[str, str]:
        """Return the entries by which a later run recognizes a file that is up to date."""
        parameters = dict(self.metadata)
        if name != "features":
            basis = self.maker.basis
            parameters["picture"] = name
            parameters["nearest"] = self.maker.places.nearest
            parameters["basis"] = None if basis is None or name.startswith("attention") else basis.digest
        return {"vitnp:parameters": parameters_hash(parameters), "vitnp:photograph": photograph}

    def write(self, files: Mapping[str, Path], features: FeatureRecord, source: Photograph) -> None:
        """Write the files of a photograph, all or none.

        Raises
        ------
        ImageError
            If the photograph is needed again, and cannot be read any more or has changed.
        OutputError
            If a file cannot be written.
        """
        stamps = {name: self.stamp(name, features.photograph) for name in files}
        with write.writing_together(next(iter(files.values())).parent):
            if "features" in files:
                write_file(files["features"], features, {**self.metadata, **stamps["features"]})
            if "pca" in files:
                write.write_png(files["pca"], self.maker.pca(features), stamps["pca"])
            if "attention" in files:
                self._write_attention(files, features, source, stamps)
            if "maps" in files:
                self._write_maps(files["maps"], features, stamps["maps"])

    def _write_attention(
        self,
        files: Mapping[str, Path],
        features: FeatureRecord,
        source: Photograph,
        stamps: Mapping[str, Mapping[str, str]],
    ) -> None:
        if fingerprint(source) != features.photograph:
            raise ImageError(f"{source.path}: the file has changed during the run; run again")
        # Its notices were logged when the features were extracted.
        image = decode_image(source.path, max_pixels=self.max_pixels, alpha=self.alpha)
        for name, values in zip(attention_names(self.heads), self.maker.attention(features)):
            picture = self.maker.heat(values, features, image.rgb)
            write.write_png(files[name], picture, stamps[name], profile=image.profile, dpi=image.metadata.dpi)

    def _write_maps(self, path: Path, features: FeatureRecord, stamp: Mapping[str, str]) -> None:
        attention = self.maker.attention(features)
        arrays = {"attention": attention[0], "attention_heads": attention[1:]}
        if self.maker.basis is not None:
            arrays["pca"] = self.maker.components(features)
        facts = {"grid": features.grid, "pixels": features.pixels, "photograph_size": features.size}
        write.write_npz(path, arrays, {**self.metadata, **facts, **stamp})


def attention_names(heads: int) -> list[str]:
    """Return the names of the attention maps: of the mean over heads, and of each head from 0, as DINO counts them.

    Examples
    --------
    >>> attention_names(2)
    ['attention', 'attention_head0', 'attention_head1']
    """
    return ["attention", *(f"attention_head{head}" for head in range(heads))]


def output_suffixes(which: Sequence[str], form: str, heads: int) -> dict[str, str]:
    """Return what the file names of a photograph end in, by the name of the output.

    Examples
    --------
    >>> output_suffixes(("features", "pca"), "npz", 3)
    {'features': '.npz', 'pca': '_pca.png'}
    """
    suffixes: dict[str, str] = {}
    for name in which:
        if name == "features":
            suffixes[name] = f".{form}"
        elif name == "maps":
            suffixes[name] = "_maps.npz"
        else:
            names = attention_names(heads) if name == "attention" else [name]
            suffixes |= {each: f"_{each}.png" for each in names}
    return suffixes


def metadata_of(vit: ViT, spec: FeatureSpec) -> dict[str, object]:
    """Return the metadata that all files of a run share: network, spec and version."""
    metadata = {"model": vit.name, "patch": vit.config.patch, **spec.as_stored(), "version": __version__}
    # The files are the same with and without.
    for name in ("regions", "attention_heads"):
        metadata.pop(name, None)
    return metadata
