"""The region heads: `region`, one box for each `<boxes>` token, and `<region_box>` for a box that the user gives; and
`region_set`, any number of boxes for one `<box_set>` token, which is applied where it is named."""

from collections.abc import Callable

import tpo_plugin as tpo


@tpo.hookimpl
def register_heads(register: Callable[..., None]) -> None:
    register(
        "region",
        head="tpo_head_region.head:RegionHead",
        config="tpo_head_region.config:RegionConfig",
        codec="tpo_head_region.codec:RegionCodec",
        trigger="<box_begin>",
        task_token="<boxes>",
        input_token="<region_box>",
    )
    register(
        "region_set",
        head="tpo_head_region.set_head:RegionSetHead",
        config="tpo_head_region.config:RegionSetConfig",
        codec="tpo_head_region.codec:RegionSetCodec",
        trigger="<set_begin>",
        task_token="<box_set>",
        default=False,
    )


@tpo.hookimpl
def register_formats(register: Callable[..., None]) -> None:
    from tpo_head_region.formats import FORMATS

    for name, target in FORMATS.items():
        register(name, f"tpo_head_region.formats.{target}")
