"""The Gradio page and its server. Nothing is fetched from other hosts."""

import signal
import threading
from types import SimpleNamespace
from typing import Any

from gamix_jax.errors import UserError
from gamix_jax.explore import multimodal_page
from gamix_jax.explore.components import NEWEST_ONLY, gradio, with_message
from gamix_jax.explore.multimodal_view import MultimodalView
from gamix_jax.explore.view import MAX_BYTES, SPAN, View
from gamix_jax.plots import named

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
MAX_TEMPERATURE = 1.5
# System fonts; Gradio's default fonts are fetched from Google.
FONT = ("system-ui", "sans-serif")
MONO = ("ui-monospace", "monospace")


def build(view: View | MultimodalView) -> Any:
  """Builds the page as gradio.Blocks."""
  with gradio().Blocks(
    title="gamix_jax", analytics_enabled=False, delete_cache=(3600, 3600)
  ) as page:
    if isinstance(view, MultimodalView):
      multimodal_page.build(view)
    else:
      _connect_events(view, _lay_out(view))
  return page


def _lay_out(view: View) -> SimpleNamespace:
  """Creates the components of the page, inside Blocks; returns them by name."""
  gr, ui = gradio(), SimpleNamespace()
  first, second = view.images[:2]
  z0, z1 = view.code(first), view.code(second)

  def image(label, value=None, **kwargs):
    return gr.Image(
      value, label=label, format="png", interactive=False, buttons=[], **kwargs
    )

  def upload(label):
    return gr.File(
      label=label, file_types=["image"], type="filepath", height=110
    )

  config = view.model.config
  gr.Markdown(
    f"### {named(view.model.workdir.name)}: {config.posterior.name}, "
    f"{config.model.latent} latents, step {view.model.step}"
  )
  ui.message = gr.Markdown(elem_id="message")
  ui.code, ui.other_code = gr.State(z0), gr.State(z1)
  with gr.Row():
    # Side by side on a phone, so that both are seen while a slider moves.
    with gr.Column(min_width=140):
      ui.file = upload("Your image")
      ui.input = image("Model input", view.shown(first), elem_id="seen")
    with gr.Column(min_width=140):
      ui.decoded = image("Decoded", view.picture(z0), elem_id="decoded")
    with gr.Column(min_width=240):
      ui.sliders = [
        gr.Slider(
          *(-SPAN, SPAN, 0),
          step=0.05,
          label=f"latent {d}",
          elem_id=f"latent-{d}",
        )
        for d in view.active
      ]
      ui.reset = gr.Button("Reset sliders")
  with gr.Tab("Map"):
    what = "held-out images" if view.held_out else "samples of the model"
    gr.Markdown(f"PCA of the codes of {what}. Click to decode a point.")
    ui.map = image("Map", view.map(view.place(z0)), elem_id="map")
  with gr.Tab("Mix"), gr.Row():
    with gr.Column(min_width=140):
      ui.other_file = upload("Another image")
      ui.other_input = image("Other image", view.shown(second))
    with gr.Column(min_width=140):
      ui.share = gr.Slider(0, 1, 0.5, step=0.01, label="Weight of the other")
      ui.mix = image(
        "Mixed",
        view.mixed(z0, z1, 0.5),
        elem_id="mixed",
      )
  with gr.Tab("Samples"):
    with gr.Row():
      ui.temperature = gr.Slider(
        0, MAX_TEMPERATURE, 1.0, step=0.05, label="Temperature"
      )
      ui.seed = gr.Number(0, label="Seed", precision=0, minimum=0)
    ui.grid = image("Samples", view.samples(0, 1.0), elem_id="samples")
  return ui


def _connect_events(view: View, ui: SimpleNamespace) -> None:
  """Registers the event handlers, inside Blocks."""
  gr = gradio()
  zeros = [0] * len(ui.sliders)

  def on_upload(path, share, z1):
    x = view.open(path)
    z = view.code(x)
    mark = view.map(view.place(z))
    mixed = view.mixed(z, z1, share)
    return z, view.shown(x), view.picture(z), mark, mixed, *zeros

  def on_slide(z, *by):
    z = view.moved(z, by)
    return view.picture(z), view.map(view.place(z))

  def on_map_click(share, z1, event: gr.SelectData):
    x, y = event.index
    z = view.at(x, y)
    mixed = view.mixed(z, z1, share)
    return z, view.picture(z), view.map((x, y)), mixed, *zeros

  def on_upload_other(path, share, z):
    x = view.open(path)
    z1 = view.code(x)
    return z1, view.shown(x), view.mixed(z, z1, share)

  def connect(event, function, inputs, outputs, **kwargs):
    event(
      with_message(function, len(outputs)),
      inputs,
      [*outputs, ui.message],
      **kwargs,
    )

  outputs = [ui.code, ui.input, ui.decoded, ui.map, ui.mix, *ui.sliders]
  connect(
    ui.file.upload, on_upload, [ui.file, ui.share, ui.other_code], outputs
  )
  connect(
    ui.other_file.upload,
    on_upload_other,
    [ui.other_file, ui.share, ui.code],
    [ui.other_code, ui.other_input, ui.mix],
  )
  for slider in ui.sliders:
    connect(
      slider.input,
      on_slide,
      [ui.code, *ui.sliders],
      [ui.decoded, ui.map],
      **NEWEST_ONLY,
    )
  ui.reset.click(
    lambda z: (*on_slide(z, *zeros), *zeros),
    [ui.code],
    [ui.decoded, ui.map, *ui.sliders],
  )
  # Without `connect`, since Gradio inspects the annotation of `event`.
  ui.map.select(
    on_map_click,
    [ui.share, ui.other_code],
    [ui.code, ui.decoded, ui.map, ui.mix, *ui.sliders],
    show_progress="hidden",
  )
  connect(
    ui.share.input,
    lambda z, z1, share: (view.mixed(z, z1, share),),
    [ui.code, ui.other_code, ui.share],
    [ui.mix],
    **NEWEST_ONLY,
  )
  for control in (ui.temperature.input, ui.seed.input):
    connect(
      control,
      lambda seed, t: (view.samples(int(seed or 0), t),),
      [ui.seed, ui.temperature],
      [ui.grid],
      **NEWEST_ONLY,
    )


def serve(view: View | MultimodalView, host: str, port: int) -> None:
  """Serves the page until SIGINT or SIGTERM.

  Raises:
    UserError: if gradio is missing, or the port or host cannot be used.
  """
  gr = gradio()
  stop = threading.Event()
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: stop.set())
  if host not in LOCAL_HOSTS:
    print(
      f"--host={host}: anyone who can reach this machine can use the page; it "
      "has no password.",
      flush=True,
    )
  page = build(view)
  try:
    page.launch(
      server_name=host,
      server_port=port,
      share=False,
      prevent_thread_lock=True,
      quiet=True,
      ssr_mode=False,
      footer_links=[],
      max_file_size=MAX_BYTES,
      theme=gr.themes.Default(font=FONT, font_mono=MONO),
    )
  except OSError as e:
    raise UserError(
      f"--host={host} --port={port} cannot be used: the port is taken, or the "
      "host is not an address of this machine; use another."
    ) from e
  print(f"http://{host}:{port} (press Ctrl-C to stop)", flush=True)
  stop.wait()
  page.close(verbose=False)
