"""What a network looks at in a face and what its filters respond to, as functions of tensors.

Images are float N×1×H×W, 0..255, of the network's own input size; classes are int64 N; a class's
score is its logit. The network is in evaluation mode. torch's global generator draws the noise.
"""

from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torchvision.transforms.functional import gaussian_blur

from fer import extra
from fer.models.network import Network

BATCH = 128  # images in one pass with gradients


def captum_attr() -> Any:
    """The module captum.attr. Raises UserError if Captum is not installed."""
    with extra("explain", "saliency maps"):
        import captum.attr
    return captum.attr


def saliency(network: Network, images: Tensor, classes: Tensor) -> Tensor:
    """N×1×H×W: magnitude of the score's gradient, per gray level (Simonyan et al. 2014)."""
    method = captum_attr().Saliency(network)
    return method.attribute(images.detach().requires_grad_(), target=classes)


def smooth_grad(
    network: Network, images: Tensor, classes: Tensor, samples: int = 32, noise: float = 13.0
) -> Tensor:
    """N×1×H×W: mean saliency of `samples` copies with Gaussian noise, whose standard deviation is
    `noise` gray levels (Smilkov et al. 2017).

    The default is 5 % of the range, not the published 10 to 20 %: with 15 % the maps of compact_cnn
    no longer follow the face.
    """
    captum = captum_attr()
    method = captum.NoiseTunnel(captum.Saliency(network))
    return method.attribute(
        images.detach().requires_grad_(), nt_samples=samples, stdevs=noise, target=classes
    )


def integrated_gradients(
    network: Network, images: Tensor, classes: Tensor, steps: int = 128
) -> Tensor:
    """N×1×H×W, which add up to the face's score minus that of black (Sundararajan et al. 2017), to
    4 % in compact_cnn.

    The path from black to the face is straight after normalization. Before it, the path would be
    the same for constants of the data set, but not for a face normalized by itself: scaling changes
    nothing then, and all gradients are 0.
    """
    inputs, black = network.normalize(images), network.normalize(torch.zeros_like(images))
    method = captum_attr().IntegratedGradients(network.model)
    maps = method.attribute(
        inputs,
        black,
        target=classes,
        n_steps=steps,
        internal_batch_size=max(BATCH, len(images)),
    )
    return maps.detach().float()


def grad_cam(network: Network, layer: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """N×1×H×W, from 0: the layer's maps, each weighted by the mean gradient of the score on it,
    summed, rectified and enlarged (Selvaraju et al. 2017).
    """
    method = captum_attr().LayerGradCam(network, layer)
    maps = method.attribute(
        images.detach().requires_grad_(), target=classes, relu_attributions=True
    )
    return F.interpolate(maps.detach(), images.shape[-2:], mode="bilinear")


class LayerDone(BaseException):
    """The layer has run; the rest of the network need not. Not an Exception, so that nothing else
    catches it.
    """


def activations(network: Network, layer: nn.Module, images: Tensor) -> Tensor:
    """N×C×h×w or N×C: the layer's output (Zeiler & Fergus 2014), the first one if it runs more than
    once. The network runs no further.
    """
    outputs: list[Tensor] = []

    def stop(module: nn.Module, given: tuple, output: Tensor) -> None:
        outputs.append(output)
        raise LayerDone

    with layer.register_forward_hook(stop), suppress(LayerDone):
        network(images)
    return outputs[0]


def excitation(network: Network, layer: nn.Module, images: Tensor, units: Tensor) -> Tensor:
    """N: on the i-th image, the mean activation of the layer's units[i], a filter or a dense unit.

    Negative activations count a tenth: where a convolution's outputs cancel out, its mean would be
    the same on every image, save for the edges.
    """
    of_units = activations(network, layer, images)[torch.arange(len(units)), units]
    return F.leaky_relu(of_units, 0.1).reshape(len(of_units), -1).mean(1)


def ascend(
    network: Network, layer: nn.Module, units: Tensor, steps: int = 90, rate: float = 8.0
) -> Tensor:
    """N×1×H×W: for each of `units` (int64 N) the image that excites it, by gradient ascent from
    white noise (Erhan et al. 2009), all in one batch.

    A step moves `rate` gray levels (root mean square) along the gradient of images that are shifted
    by up to 2 pixels. Then contrast decays by 2 %, and a 3×3 blur makes up 80 % of the image, less
    in each later step, none in the last: without these, deep layers and classes show checkerboards.
    """
    side = network.model.size
    images = 128 + 20 * torch.randn(len(units), 1, side, side, device=units.device)
    for step in range(steps):
        y, x = torch.randint(-2, 3, (2,)).tolist()
        shifted = images.roll((y, x), (2, 3)).requires_grad_()
        score = excitation(network, layer, shifted, units).sum()
        (gradient,) = torch.autograd.grad(score, shifted)
        norm = gradient.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-12)
        images = images + rate * (gradient / norm).roll((-y, -x), (2, 3))
        images = 128 + 0.98 * (images - 128)
        blurred = gaussian_blur(images, 3, 0.85)
        blur_share = 0.8 * (1 - (step + 1) / steps)
        images = images.lerp(blurred, blur_share).clamp(0, 255)
    return images


@torch.no_grad()
def layer_outputs(network: Network, images: Tensor) -> dict[str, Tensor]:
    """Name → output of every layer that puts out maps N×C×h×w or units N×C, in the order in which
    the layers end.
    """
    outputs: dict[str, Tensor] = {}
    names = {module: name for name, module in network.model.named_modules() if name}

    def note(module: nn.Module, given: tuple, output: object) -> None:
        if module in names and isinstance(output, Tensor) and output.ndim in (2, 4):
            outputs.setdefault(names[module], output.clone())  # a ReLU may overwrite it

    with register_module_forward_hook(note):
        network(images)
    return outputs
