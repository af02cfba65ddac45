"""The temporal head's configuration. No torch in here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Interval

import tpo_plugin as tpo

Count = Annotated[int, Ge(1)]
Layers = Annotated[int, Interval(ge=1, le=100)]
Dropout = Annotated[float, Interval(ge=0, lt=1)]
Weight = Annotated[float, Ge(0)]


@dataclass(kw_only=True)
class TemporalConfig(tpo.HeadConfig):
    """Defaults are those published for QVHighlights (CG-DETR, arXiv 2311.08835)."""

    weight_beside_others: ClassVar[float] = 0.05
    """As TPO's authors weight the sum of the losses, which is about 40 at the start (arXiv 2412.19326)."""

    features: Literal["host", "clip", "files"] = "host"
    """Where the clips' and the words' features come from: "host", its own vision tower and `text`; "clip", a
    frozen CLIP or SigLIP; "files", computed before."""
    text: Literal["states", "words"] = "states"
    """What of the host stands for the question's words: their last hidden states, or their input embeddings, which a
    host that trains with LoRA does not move, so that the head learns from a few thousand questions."""
    clip: str | None = None
    """Folder or hub name of the CLIP or SigLIP, for features "clip"."""
    clip_sha256: str | None = None
    """Hash of its weights and of how it prepares images; filled in when it is first loaded, checked from then on."""
    video_features: list[str] = field(default_factory=list)
    """For features "files": one folder for each kind of feature, with a file <video's name>.npz or .safetensors."""
    text_features: str | None = None
    """For features "files": folder with <record's id> or qid<record's id> .npz or .safetensors; None takes the
    host's `text`."""
    clip_s: Annotated[float, Gt(0)] | None = None
    """For features "files" that do not store their video's length: seconds of a clip, to check the length by."""
    max_feature_numbers: Count = 32_000_000
    """For features "files": so many numbers may a file hold; one with more is refused before it takes memory."""
    video_size: Count | None = None
    """Width of the clips' features; None takes that of the vision tower or CLIP. Needed for features "files"."""
    text_size: Count | None = None
    """Width of the words' features; None takes the host's hidden size, or that of the CLIP."""
    normalise: bool = True
    """Whether each clip's and each word's features (of files, each kind of them) are divided by their length."""

    hidden: Count = 256
    """Width of its layers, a multiple of num_heads and of 8."""
    num_heads: Count = 8
    """Heads of each attention."""
    feed_forward: Count = 1024
    """Width of the inner layer of each feed-forward."""
    input_layers: Layers = 2
    """Linear layers that project features to `hidden`, of clips and of words each."""
    cross_layers: Layers = 2
    """Layers in which the clips attend to words and dummies."""
    encoder_layers: Layers = 3
    """Layers of the encoder over the clips."""
    decoder_layers: Layers = 3
    """Layers of the decoder; losses are computed of each."""
    dummy_layers: Layers = 2
    """Layers in which the dummies read the question; they have eight attention heads, as published."""
    moment_layers: Layers = 1
    """Layers that sum up the clips of a moment, for the losses of alignment."""
    sentence_layers: Layers = 1
    """Layers that sum up the words of a question, for the losses of alignment."""
    num_dummies: Count = 45
    """Dummy tokens beside the words, which take the attention of clips that do not fit the question."""
    num_queries: Count = 10
    """The most spans of one answer, in training too."""
    total_prompts: Count = 10
    """Learned prompts, from a choice of which the saliency token is mixed."""
    num_prompts: Count = 1
    """Prompts that are chosen, at most `total_prompts`."""
    dropout: Dropout = 0.1
    """In attention, feed-forward and, for whole branches, stochastic depth."""
    input_dropout: Dropout = 0.5
    """Before each linear layer of the input projections."""
    reference_masks: bool = False
    """Reproduces the public code's defect in the cross attention, by which a sample's result depends on what else is in
    its batch: to repeat published numbers."""
    reference_losses: bool = True
    """Whether losses are reduced as published: means over what a batch holds, padding included in some, with the
    oddities that `losses` names. Off, each is a sum over samples, which does not depend on padding or accumulation, and
    a question's negative is one about another video, also where questions about one video stand together."""

    span_weight: Weight = 10.0
    """Weight of the L1 distance of spans."""
    giou_weight: Weight = 1.0
    """Weight of the generalised IoU of spans."""
    label_weight: Weight = 4.0
    """Weight of the cross entropy of queries with and without a moment."""
    saliency_weight: Weight = 1.0
    """Weight of the losses of the saliency curve."""
    align_weight: Weight = 1.0
    """Weight of the contrast of moments with sentences."""
    distill_weight: Weight = 1.0
    """Weight of how far relevant clips' attention is from what their likeness to words and dummies asks for."""
    orthogonal_weight: Weight = 1.0
    """Weight of the overlap of dummies, and of prompts, with each other."""
    attention_weight: Weight = 1.0
    """Weight, inside the saliency loss, of its terms on the attention to words (`lw_wattn` of the public code)."""
    span_cost: Weight | None = None
    """What the matcher weighs a pair's distance by; None takes `span_weight`, as published."""
    giou_cost: Weight | None = None
    """What the matcher weighs a pair's GIoU by; None takes `giou_weight`, as published."""
    label_cost: Weight | None = None
    """What the matcher weighs a pair's foreground probability by; None takes `label_weight`, as published."""
    background_weight: Weight = 0.1
    """Weight of a query without a moment in the label loss."""
    margin: Weight = 0.2
    """By how much a relevant clip's saliency shall exceed another's."""

    nms: Annotated[float, Interval(ge=0, le=1)] | None = None
    """Overlap, 0 to 1, above which a span is dropped beside one of higher score; None keeps all, as published."""

    init_from: str | None = None
    """File that `tpo import cg-detr` wrote, to start from. Forgotten once loaded: a checkpoint has the weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.features == "clip" and self.clip is None:
            raise tpo.TPOError("features: is 'clip' and clip is None; expected the folder or name of a model")
        if self.features == "files" and self.video_size is None:
            raise tpo.TPOError("features: is 'files' and video_size is None; expected the features' width")
        if self.features == "files" and self.text_features is not None and self.text_size is None:
            raise tpo.TPOError("text_features: is set and text_size is None; expected the features' width")
        if self.hidden % self.num_heads or self.hidden % 8:
            raise tpo.TPOError(f"hidden: is {self.hidden}; expected a multiple of num_heads and of 8")
        if self.num_prompts > self.total_prompts:
            raise tpo.TPOError(f"num_prompts: is {self.num_prompts}; expected at most {self.total_prompts}")

    def matcher_costs(self) -> dict[str, float]:
        """Costs of a pair of a query and a moment, as `matcher.match` takes them."""

        def cost(own: float | None, weight: float) -> float:
            return weight if own is None else own

        return {
            "span": cost(self.span_cost, self.span_weight),
            "giou_": cost(self.giou_cost, self.giou_weight),
            "label": cost(self.label_cost, self.label_weight),
        }

    def loss_weights(self) -> dict[str, float]:
        """Weight of each named loss, those of earlier decoder layers included."""
        span = {"loss_span": self.span_weight, "loss_giou": self.giou_weight, "loss_label": self.label_weight}
        earlier = {f"{name}_{i}": w for i in range(self.decoder_layers - 1) for name, w in span.items()}
        return {
            **span,
            **earlier,
            "loss_saliency": self.saliency_weight,
            "loss_ms_align": self.align_weight,
            "loss_distill": self.distill_weight,
            "loss_orthogonal_dummy": self.orthogonal_weight,
        }
