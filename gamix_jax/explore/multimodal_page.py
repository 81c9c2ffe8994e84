"""The Gradio page of a model of several modalities."""

from types import SimpleNamespace

from gamix_jax.explore.components import NEWEST_ONLY, gradio, with_message
from gamix_jax.explore.multimodal_view import MultimodalView, columns_html
from gamix_jax.plots import named

MAX_TEMPERATURE = 1.5


def build(view: MultimodalView) -> None:
  """Adds the page's components and their events, inside Blocks."""
  gr, ui = gradio(), SimpleNamespace()
  names = list(view.model.names)
  config = view.model.config
  gr.Markdown(
    f"### {named(view.model.workdir.name)}: {', '.join(names)}; "
    f"{config.multimodal.fusion}, {config.objective.name}, step "
    f"{view.model.step}"
  )
  what = "held-out observation" if view.held_out else "sample of the model"
  ui.message = gr.Markdown(elem_id="message")
  with gr.Tab("Translations"):
    gr.Markdown(
      f"Above: a {what}. Below: what the model generates for every modality "
      "from those that are given (✓)."
    )
    ui.index = gr.Slider(
      *(0, len(view) - 1, 0), step=1, label="Observation", elem_id="index"
    )
    ui.given = gr.CheckboxGroup(
      names, value=names[:1], label="Given", elem_id="given"
    )
    with gr.Row():
      ui.draw = gr.Checkbox(
        False, label="A draw of the posterior, not its mean", elem_id="draw"
      )
      ui.seed = gr.Number(0, label="Seed of the draw", precision=0, minimum=0)
    ui.translated = gr.HTML(
      _translations(view, 0, names[:1], False, 0), elem_id="translations"
    )
  inputs = [ui.index, ui.given, ui.draw, ui.seed]
  for control in inputs:
    control.input(
      with_message(lambda *args: (_translations(view, *args),), 1),
      inputs,
      [ui.translated, ui.message],
      **NEWEST_ONLY,
    )
  if view.has_samples:
    _samples_tab(view, ui)


def _samples_tab(view: MultimodalView, ui: SimpleNamespace) -> None:
  gr = gradio()
  with gr.Tab("Samples"):
    gr.Markdown("New observations, one in a column.")
    with gr.Row():
      ui.temperature = gr.Slider(
        0, MAX_TEMPERATURE, 1.0, step=0.05, label="Temperature"
      )
      ui.sample_seed = gr.Number(0, label="Seed", precision=0, minimum=0)
    ui.samples = gr.HTML(_samples(view, 0, 1.0), elem_id="samples")
  inputs = [ui.sample_seed, ui.temperature]
  for control in inputs:
    control.input(
      with_message(lambda seed, t: (_samples(view, int(seed or 0), t),), 1),
      inputs,
      [ui.samples, ui.message],
      **NEWEST_ONLY,
    )


def _translations(
  view: MultimodalView, i: int, given: list[str], draw: bool, seed: int | None
) -> str:
  made = view.translations(int(i), given, int(seed or 0) if draw else None)
  seen = view.observation(int(i))
  return columns_html(
    [
      (f"{k} ✓" if k in given else k, (seen[k], made[k]))
      for k in view.model.names
    ]
  )


def _samples(view: MultimodalView, seed: int, temperature: float) -> str:
  samples = view.samples(seed, temperature)
  return columns_html(
    [(str(i), list(s.values())) for i, s in enumerate(samples)]
  )
