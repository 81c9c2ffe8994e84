"""Metrics of sets against scikit-image, scikit-learn, brute force and torch."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from damage import damages
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from gamix_jax import metrics
from gamix_jax.errors import UserError
from gamix_jax.metrics import classifier


def rng(seed=0):
  return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def digits():
  """Real features: digits' 64 pixels in [0, 1], and their labels."""
  found = load_digits()
  return found.data / 16, found.target


# -------------------------------------------------------------- images


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_skimages(channels):
  from skimage import metrics as skimage

  x = rng().uniform(-1, 1, (3, 13, 16, channels)).astype(np.float32)
  y = np.clip(x + 0.3 * rng(1).normal(size=x.shape), -1, 1).astype(np.float32)
  real = load_digits().images[:3] / 8 - 1  # 8x8, to 16x16
  x[:, :, :, 0] = real.repeat(2, axis=1).repeat(2, axis=2)[:, :13]
  want = {"psnr": [], "ssim": []}
  pairs = ((v.astype(np.float64) + 1) / 2 for v in (x, y))
  for a, b in zip(*pairs, strict=True):
    want["psnr"].append(skimage.peak_signal_noise_ratio(a, b, data_range=1))
    want["ssim"].append(
      skimage.structural_similarity(
        *(a, b),
        data_range=1,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
      )
    )
  np.testing.assert_allclose(metrics.psnr(x, y), want["psnr"], rtol=1e-5)
  np.testing.assert_allclose(metrics.ssim(x, y), want["ssim"], atol=2e-5)
  np.testing.assert_allclose(metrics.ssim(x, x), 1, atol=1e-6)
  want = np.abs(x.astype(np.float64) - y).mean(axis=(1, 2, 3))
  np.testing.assert_allclose(metrics.absolute_error(x, y), want, rtol=1e-6)
  assert (metrics.psnr(x, x) > 100).all()


def test_images_refuse():
  x = np.zeros((2, 8, 8, 1), np.float32)
  with pytest.raises(UserError, match="11x11"):
    metrics.ssim(x, x)
  with pytest.raises(UserError, match="Two sets"):
    metrics.psnr(x, x[:1])


def test_bits_of_a_uniform_density_are_eight():
  """256 levels, 1 / 127.5 apart, of equal density: -log2(1 / 256)."""
  dims = 5
  nats = dims * np.log(127.5 / 256)
  assert metrics.bits_per_dim(nats, dims) == pytest.approx(8)
  # Wide Laplace noise, by the entropy of its levels' probabilities.
  levels = np.arange(-4000, 4001) / 127.5
  density = np.exp(-np.abs(levels) / 0.5)
  p = density / density.sum()
  entropy = -np.sum(p * np.log2(p))
  nats = np.sum(p * np.log(density))  # unnormalised; its integral is 1
  assert metrics.bits_per_dim(nats, 1) == pytest.approx(entropy, abs=1e-3)


def test_mean_and_error():
  each = rng().normal(size=50)
  mean, error = metrics.mean_and_error(each)
  assert (mean, error) == pytest.approx(
    (each.mean(), each.std(ddof=1) / 50**0.5)
  )
  assert metrics.mean_and_error(each[:1])[1] is None


# ------------------------------------------------------------ distances


def two_sets(digits, kind):
  if kind == "random":
    return rng(0).normal(size=(60, 7)), rng(1).normal(0.4, 1.2, (75, 7))
  return digits[0][:150], digits[0][150:330] * 0.9


@pytest.mark.parametrize("kind", ["random", "real"])
def test_prdc_is_its_definition(digits, kind):
  a, b = two_sets(digits, kind)
  k = 5
  ra, rb = (np.sort(cdist(v, v), axis=1)[:, k] for v in (a, b))
  between = cdist(a, b)
  inside = between < ra[:, None]
  want = {
    "precision": inside.any(axis=0).mean(),
    "recall": (between < rb).any(axis=1).mean(),
    "density": inside.sum(axis=0).mean() / k,
    "coverage": (between.min(axis=1) < ra).mean(),
  }
  assert metrics.prdc(a, b) == pytest.approx(want)
  far = metrics.prdc(a, b + 1000)
  assert set(far.values()) == {0.0}
  with pytest.raises(UserError, match="6 or more"):
    metrics.prdc(a[:5], b)


@pytest.mark.parametrize("kind", ["random", "real"])
def test_kernel_distance_is_its_definition(digits, kind, monkeypatch):
  a, b = (v[:50] for v in two_sets(digits, kind))

  def mmd(a, b):
    def k(x, y):
      return (x @ y.T / x.shape[1] + 1) ** 3

    off_a, off_b = (k(v, v)[~np.eye(len(v), dtype=bool)] for v in (a, b))
    return off_a.mean() + off_b.mean() - 2 * k(a, b).mean()

  monkeypatch.setattr(metrics.distances, "ROWS", 32)  # several blocks
  value, error = metrics.kernel_distance(a, b)
  np.testing.assert_allclose(value, mmd(a, b), rtol=1e-9)
  left = [
    [mmd(np.delete(a, i, axis=0), b) for i in range(len(a))],
    [mmd(a, np.delete(b, i, axis=0)) for i in range(len(b))],
  ]
  want = sum((len(v) - 1) * np.var(v) for v in left) ** 0.5
  np.testing.assert_allclose(error, want, rtol=1e-6)


def test_kernel_distance_is_unbiased_and_knows_its_error():
  found = []
  for seed in range(100):
    r = rng(seed)
    pair = r.normal(size=(40, 3)), r.normal(0.5, 1, (50, 3))
    found.append(metrics.kernel_distance(*pair))
  values, errors = np.array(found).T
  r = rng(999)  # the same, from many more rows
  big = metrics.kernel_distance(
    r.normal(size=(3000, 3)), r.normal(0.5, 1, (3000, 3))
  )
  off = abs(values.mean() - big.value)
  assert off < 4 * np.hypot(values.std() / 10, big.error)
  assert 0.75 < errors.mean() / values.std() < 1.35


def test_matches_torch_fidelity(digits):
  """Frechet and kernel distance, precision and recall on the same features."""
  pytest.importorskip("torch", reason="torch-fidelity is not installed")
  pytest.importorskip("torch_fidelity", reason="it is not installed")
  import torch
  from torch_fidelity import metric_fid, metric_kid, metric_prc

  a, b = (v.astype(np.float32) for v in (digits[0][:600], digits[0][600:1200]))
  b = 0.9 * b
  one, two = torch.from_numpy(a), torch.from_numpy(b)
  stats = [metric_fid.fid_features_to_statistics(v) for v in (one, two)]
  want = metric_fid.fid_statistics_to_metric(*stats, verbose=False)
  want = want["frechet_inception_distance"]
  assert metrics.frechet_distance(a, b) == pytest.approx(want, rel=1e-5)
  found = metric_kid.kid_features_to_metric(
    one, two, kid_subsets=1, kid_subset_size=600, verbose=False
  )
  want = found["kernel_inception_distance_mean"]
  assert metrics.kernel_distance(a, b).value == pytest.approx(want, rel=1e-4)
  found = metric_prc.prc_features_to_metric(  # theirs: generated, real
    two, one, prc_neighborhood=5, verbose=False
  )
  got = metrics.prdc(a, b, 5)
  assert got["precision"] == pytest.approx(found["precision"], abs=2 / 600)
  assert got["recall"] == pytest.approx(found["recall"], abs=2 / 600)


# ------------------------------------------------------------- features


@pytest.mark.slow
def test_classifier_features(digits, tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(metrics.classifier, "STEPS", 80)
  images = np.rint(digits[0] * 255).astype(np.uint8).reshape(-1, 8, 8, 1)
  labels = digits[1]
  x = images[1200:] / np.float32(127.5) - 1

  def make(seed=0, images=images[:1200], cache=tmp_path):
    return metrics.classifier_features(
      images, labels[: len(images)], seed, cache
    )

  first = make()
  got = first(x)
  assert got.shape == (597, 64) and np.isfinite(got).all()
  assert 0.3 < np.sqrt(np.mean(got**2)) < 3
  assert first.accuracy(x, labels[1200:]) > 0.5
  (file,) = tmp_path.glob("classifier-*.npz")
  again = make()  # from the file
  np.testing.assert_array_equal(again(x[:3]), first(x)[:3])
  assert again.sha256 == first.sha256
  assert make(images=images[:1199], cache=None).sha256 != first.sha256
  whole = file.read_bytes()
  file.write_bytes(whole[:100])
  assert make().sha256 == first.sha256
  assert "is damaged" in caplog.text
  for damaged in damages(whole, 100):
    file.write_bytes(damaged)
    found = classifier._read(file, first._params)
    assert found is None or jax.tree.all(
      jax.tree.map(np.array_equal, found, first._params)
    )
  with pytest.raises(UserError, match="two classes"):
    metrics.classifier_features(images, np.zeros(len(images), int))
  with pytest.raises(UserError, match="was made for"):
    first(x[:, 1:])


def test_inception_features(tmp_path, monkeypatch):
  """torch-fidelity's network with stand-in weights; refusals."""
  with pytest.raises(UserError, match="no such file"):
    metrics.inception_features(tmp_path / "none.pth")
  pytest.importorskip("torch_fidelity", reason="torch-fidelity: not installed")
  import torch
  from torch_fidelity import feature_extractor_inceptionv3 as their

  file = tmp_path / "other.pth"
  torch.save({"fc.bias": torch.zeros(3)}, file)
  with pytest.raises(UserError, match="holds no weights"):
    metrics.inception_features(file)
  torch.manual_seed(0)
  # The class needs weights to be built: its own, before they are loaded.
  held = {}

  def keep(self, state):
    held.update({k: v.clone() for k, v in self.state_dict().items()})

  with monkeypatch.context() as m:
    m.setattr(their, "load_state_dict_from_url", lambda *a, **k: {})
    m.setattr(their.FeatureExtractorInceptionV3, "load_state_dict", keep)
    their.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
  torch.save(held, file)
  features = metrics.inception_features(file)
  assert not features.official
  assert features.name == f"inception_{features.sha256[:8]}"
  x = rng().uniform(-1, 1, (2, 16, 16, 1)).astype(np.float32)
  got = features(x)
  assert got.shape == (2, 2048) and np.isfinite(got).all()
  eight = torch.from_numpy(np.rint((x + 1) * 127.5).astype(np.uint8))
  eight = eight.permute(0, 3, 1, 2).repeat(1, 3, 1, 1)
  network = their.FeatureExtractorInceptionV3(
    "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(file)
  )
  np.testing.assert_allclose(got, network(eight)[0].numpy(), rtol=1e-5)
  monkeypatch.setattr(metrics.features, "FID_WEIGHTS", features.sha256[:8])
  assert metrics.inception_features(file).name == "inception"


def test_inception_without_torch_fidelity(tmp_path, monkeypatch):
  import sys

  file = tmp_path / "weights.pth"
  file.write_bytes(b"0")
  for name in [n for n in sys.modules if n.startswith("torch_fidelity")]:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.setitem(sys.modules, "torch_fidelity", None)
  with pytest.raises(UserError, match=r"gamix_jax\[fid\]"):
    metrics.inception_features(file)


# ---------------------------------------------------------------- codes


def test_auroc_is_scikit_learns():
  r = rng()
  a, b = r.normal(size=80).round(1), r.normal(0.7, 1, 50).round(1)  # ties
  value, error = metrics.auroc(a, b)
  both = np.concatenate([a, b])
  want = roc_auc_score(np.arange(130) >= 80, both)
  assert value == pytest.approx(want)
  drawn = [
    roc_auc_score(np.arange(130) >= 80, np.concatenate(pair))
    for pair in ((r.choice(a, 80), r.choice(b, 50)) for _ in range(300))
  ]
  assert 0.8 < error / np.std(drawn) < 1.25
  assert metrics.auroc([0, 1], [2, 3]) == (1.0, 0.0)
  with pytest.raises(UserError, match="2 of each"):
    metrics.auroc([1.0], [2.0, 3.0])
  with pytest.raises(UserError, match="finite"):
    metrics.auroc([1.0, np.nan], [2.0, 3.0])


def test_probes(digits):
  """Against standardising, fitting and voting by hand."""
  codes, labels = digits[0][:, 10:30], digits[1]
  parts = codes[:900], labels[:900], codes[900:], labels[900:]
  mean, std = parts[0].mean(axis=0), parts[0].std(axis=0)
  std[std == 0] = 1
  a, b = ((v - mean) / std for v in (parts[0], parts[2]))
  near = np.argsort(cdist(b, a), axis=1)[:, :5]
  votes = np.array([np.bincount(v, minlength=10) for v in labels[near]])
  want = np.mean(votes.argmax(axis=1) == parts[3])
  got = metrics.knn(*parts)
  assert got.value == pytest.approx(want, abs=2 / 897)
  assert got.error == pytest.approx((want * (1 - want) / 897) ** 0.5, rel=0.05)
  from sklearn.linear_model import LogisticRegression

  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    want = LogisticRegression(max_iter=1000).fit(a, parts[1]).score(b, parts[3])
  assert metrics.linear_probe(*parts).value == pytest.approx(want, abs=2 / 897)
  with pytest.raises(UserError, match="two classes"):
    metrics.linear_probe(codes, np.zeros(len(codes)), codes, labels)
  with pytest.raises(UserError, match="knn of 5 has 3"):
    metrics.knn(codes[:3], labels[:3], codes, labels)


def test_features_are_jax_or_numpy():
  x = rng().normal(size=(10, 3))
  assert metrics.frechet_distance(jnp.asarray(x), x) < 1e-4
