"""Stage `generate`: draw images for prompts, or keep the best of many by a reward."""

import time
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from rich.filesize import decimal

from sayso.base.cards import refuse_forecast
from sayso.base.devices import (
    BasePrecision,
    MixedPrecision,
    is_main_process,
    main_process_first,
    make_accelerator,
)
from sayso.base.errors import UserError
from sayso.base.progress import console
from sayso.base.records import check_choices
from sayso.base.samplers import checked, parse_size
from sayso.base.types import Sampler
from sayso.stages._best_of import keep_best
from sayso.stages._drawer import Drawer
from sayso.stages._drawing import draw_all
from sayso.stages._drawing_plan import Drawing, missing, planned
from sayso.study.checks import refuse_damaged
from sayso.study.generations import IDENTITY, Generations, own_name, say
from sayso.study.identity import (
    NotHereError,
    Selection,
    canonical_config,
    canonical_options,
    model_identity,
    parse_selection,
    reward_name,
)
from sayso.study.info import PromptChoice
from sayso.study.model_files import latents_bytes, no_guidance
from sayso.study.run import Run
from sayso.study.sample_records import gather
from sayso.study.study import Study

if TYPE_CHECKING:
    from sayso.rewards import Reward


@dataclass(frozen=True)
class GenerateConfig:
    """What to generate, and how."""

    portions: ClassVar = frozenset({"batch_size", "forecast_for"})

    model: str = "base"
    """The model that generates: base, or a run of align such as runs/align-rwr."""
    prompts: PromptChoice = "train"
    """Which prompts to use; test means seen and unseen."""
    per_prompt: int = 4
    """Images per prompt; their seeds are the same for every model. 0 = the numbers of the prompt
    set, such as the paper's 60, 30 or 6, depending on the group."""
    best_of: int = 0
    """Select the best `per_prompt` of this many images per prompt by reward. They become the images
    of <model>@best-<per_prompt>-of-<n>-by-<reward>, or <model>@best-of-<n> for short; 0 = off."""
    reward: str = ""
    """The reward that selects the best: a run of fit or reward, such as runs/fit-clip_head, or a
    reward that needs neither, such as clip_score."""
    name: str = ""
    """Name of the run; default: <model>-<prompts>."""
    batch_size: int = 64
    """Images generated at once on one device."""
    num_inference_steps: int = 0
    """Sampling steps; 0 = the study's."""
    guidance_scale: float | None = None
    """Scale of classifier-free guidance; default: the study's."""
    eta: float | None = None
    """Noise added while sampling, from 0 to 1; default: the study's."""
    image_size: str = ""
    """Width x height, such as 1024x768, or one number for a square; default: the study's."""
    base_precision: BasePrecision = "fp32"
    """How weights are kept in memory: bf16 halves them; int8 and nf4 (4 bits) quarter and eighth
    the network's linear layers and need the extra sayso[quantised]. Images of each are images of
    their own; compare models only if both generated with the same."""
    forecast_for: str = ""
    """With --dry-run: the device to forecast for, in place of this machine's: its memory (24GB), a
    card (rtx3090, rtx4090, a100, h100, h200), or several (4x24GB)."""
    mixed_precision: MixedPrecision = "auto"
    """Precision of the network's arithmetic; auto = bf16 if the machine supports it."""

    def check(self) -> None:
        """Raises: UserError: naming the first option that is out of range."""
        check_choices(self)
        for name, least in {"per_prompt": 1 if self.best_of else 0, "batch_size": 1}.items():
            if getattr(self, name) < least:
                raise UserError(f"{name} {getattr(self, name)} is too small; give {least} or more")
        if self.best_of and self.best_of < self.per_prompt:
            raise UserError(
                f"best_of {self.best_of} is less than per_prompt {self.per_prompt}; "
                "raise --best-of or lower --per-prompt"
            )
        if self.best_of and not self.reward:
            raise UserError("best_of needs a reward to select by; give --reward runs/fit-clip_head")

    def sampler(self, study: Study) -> Sampler:
        """The study's sampler with this config's changes.

        Raises: UserError: if a field is out of range or would change nothing.
        """
        given = {
            "num_inference_steps": self.num_inference_steps or None,
            "guidance_scale": self.guidance_scale,
            "eta": self.eta,
            "image_size": parse_size(self.image_size) if self.image_size else None,
            "base_precision": self.base_precision,
        }
        changes: dict[str, Any] = {key: v for key, v in given.items() if v is not None}
        return checked(replace(study.info.sampler, **changes), no_guidance(study.info.base_model))

    @property
    def drawn_model(self) -> str:
        """The model under whose name the images are kept."""
        if not self.best_of:
            return self.model
        return Selection(self.model, self.per_prompt, self.best_of, reward_name(self.reward)).name


def plan(study: Study, config: GenerateConfig) -> dict[str, object]:
    """What would be done: images, those there already, network evaluations; disk, memory, hours.

    Raises: UserError: if the memory does not suffice, with the batch size that would make it fit.
    """
    from sayso.families._loading import evaluations
    from sayso.stages._drawing_forecast import drawing_forecast
    from sayso.stages._reward_footprint import reward_footprint

    config.check()
    config = canonical_config(study, config)
    drawings = _drawings(study, config, Generations(study).now(config.model))
    batches = missing(study, drawings, config.model, config.batch_size)
    to_draw, sampler = sum(map(len, batches)), config.sampler(study)
    latents = latents_bytes(study.info.base_model, sampler.image_size)
    return {
        "images": len(drawings),
        "images left to generate": to_draw,
        "images at once": config.batch_size,
        "batches, shared among processes": len(batches),
        "network evaluations per image": evaluations(study, sampler),
        "disk, images at most": decimal(to_draw * 3 * sampler.image_size.pixels),
        "disk, latents": "not known" if latents is None else decimal(to_draw * latents),
        **drawing_forecast(
            study,
            sampler,
            config.batch_size,
            to_draw,
            config.mixed_precision,
            config.forecast_for,
            reward_footprint(study, config.reward) if config.best_of else None,
        ),
    }


def generate(study: Study, config: GenerateConfig) -> Run:
    """Draw the missing images of the plan and keep pictures, final latents and records.

    The plan is cut into batches; a batch is kept whole or not at all, so that what is drawn does
    not depend on where an earlier run was stopped, nor on how many processes share the batches.

    Raises: UserError: if a prompt does not fit the tokenizer (before anything is drawn), the model
        or reward is unknown, or an option is out of range.
    """
    refuse_forecast(config.forecast_for)
    config.check()
    config = canonical_config(study, config)
    if before := _chosen_before(study, config):
        console.print(f"{before.name} is finished")
        return before
    drawings = _drawings(study, config, _identity(study, config.model))
    batches = missing(study, drawings, config.model, config.batch_size)
    wanted = {sample.id for _, sample in drawings}
    refuse_damaged(study, [s for s in study.samples(config.model) if s.id in wanted])
    # loaded before the run is opened: what the model refuses must leave no run behind
    drawer = Drawer(study, batches, config.mixed_precision, config.batch_size) if batches else None
    identity = _identity(study, config.drawn_model)
    with main_process_first():
        name = _own_name(study, config, identity, complete=not batches)
        reward = _chooser(study, config, name, complete=not batches)
        run = study.run("generate", name, config, main=is_main_process())
    if run.finished and not batches:
        console.print(f"{run.name} is finished")
        return run
    if is_main_process():
        say(study, [config.model])
        _note_environment(study, config, run, identity, drew=bool(drawer))
    started, drawn = time.perf_counter(), sum(map(len, batches))
    if drawer:
        draw_all(study, drawer, study.samples(config.model), run.path.name)
    if not is_main_process():
        return run
    gather(study.path, run.path.name, {s.id: i for i, (_, s) in enumerate(drawings)})
    drawing_s = time.perf_counter() - started
    kept = len(drawings)
    if reward:
        del drawer  # the reward may need its memory
        reward = _on_device(study, config, reward)
        model, keep, n = config.drawn_model, config.per_prompt, config.best_of
        kept = keep_best(study, drawings, reward, keep=keep, n=n, model=model, identity=identity)
    run.finish({
        "n": kept, "drawn": drawn, "seconds": time.perf_counter() - started,
        "images_per_s": drawn / drawing_s,
    })  # fmt: skip
    return run


def _identity(study: Study, model: str) -> str:
    """The identity of the model, whose base is fetched if it is not on this machine."""
    try:
        return model_identity(study, model)
    except NotHereError:
        from sayso.families._loading import model_folders

        selection = parse_selection(model)
        model_folders(study, selection.model if selection else model)
        return model_identity(study, model)


def _note_environment(
    study: Study, config: GenerateConfig, run: Run, identity: str, *, drew: bool
) -> None:
    from sayso.families._loading import model_folders
    from sayso.rewards import reward_folders
    from sayso.study.provenance import computed_on, loaded

    folders = model_folders(study, config.model) if drew else []
    rewards = reward_folders(study, config.reward) if config.best_of else []
    device = computed_on(make_accelerator(config.mixed_precision))
    facts = {**device, IDENTITY: identity, "loaded": loaded([*folders, *rewards])}
    run.add_environment(facts)


def _chosen_before(study: Study, config: GenerateConfig) -> Run | None:
    """The finished run that made this selection before its name said how it was made."""
    if not config.best_of:
        return None
    short = f"{config.model}@best-of-{config.best_of}"
    default = f"{short.removeprefix('runs/').replace('/', '-')}-{config.prompts}"
    run = Run(study.path / "runs" / f"generate-{config.name or default}")
    if not run.finished or IDENTITY in run.environment:
        return None
    options = canonical_options(study, run.config)
    asked = {f.name: f.default for f in fields(config)}
    for name in ("name", "batch_size", "mixed_precision", "forecast_for"):
        del asked[name]
    alike = all(options.get(n, default) == getattr(config, n) for n, default in asked.items())
    return run if alike and study.samples(short) else None


def _own_name(study: Study, config: GenerateConfig, identity: str, *, complete: bool) -> str:
    model = config.drawn_model.removeprefix("runs/").replace("/", "-")
    default = f"{model}-{config.prompts}"
    return own_name(study, "generate", config.name, default, identity, unrecorded=complete)


def _chooser(study: Study, config: GenerateConfig, name: str, *, complete: bool) -> "Reward | None":
    """The reward that chooses the best, loaded in the process that does; None if there is none."""
    begun = study.begun("generate", name)
    chosen = complete and begun is not None and begun.finished
    if not config.best_of or chosen or not is_main_process():
        return None
    from sayso.rewards import load_reward

    return load_reward(study, config.reward)


def _on_device(study: Study, config: GenerateConfig, reward: "Reward") -> "Reward":
    """The reward where images are drawn; it was loaded beside the model that drew them."""
    from sayso.rewards import load_reward

    device = make_accelerator(config.mixed_precision).device
    return reward if device.type == "cpu" else load_reward(study, config.reward, device)


def _drawings(study: Study, config: GenerateConfig, identity: str) -> list[Drawing]:
    n, sampler = config.best_of or config.per_prompt, config.sampler(study)
    return planned(study, config.prompts, n, config.model, identity, sampler)
