"""Methods of corruption TTA without a gate of their own, in plain loops, after the published code.

They share no code with ``tasks.tta.methods``: parameters are visited one by one, models are copied whole, and the
augmentation is put together from torchvision's classes. All draw from torch's global generator.
"""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms import functional as F

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


def optimizer_of(name: str, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    if name == "adam":
        return torch.optim.Adam(parameters, lr=lr)
    return torch.optim.SGD(parameters, lr=lr, momentum=0.0 if name == "sgd" else 0.9, nesterov=name == "nesterov")


def batch_statistics(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    return net.eval()


def norm_weights(net: nn.Module) -> list[nn.Parameter]:
    return [p for module in net.modules() if isinstance(module, NORMS) for p in (module.weight, module.bias)]


def entropy(z: Tensor) -> Tensor:
    return -(z.softmax(1) * z.log_softmax(1)).sum(1)


def augment(x: Tensor, padding: str, blur: bool) -> Tensor:
    size = x.shape[-1]
    x = x.clip(0, 1)
    for which in torch.randperm(5):
        if which == 0:
            x = F.adjust_brightness(x, torch.tensor(1.0).uniform_(0.6, 1.4).item())
        elif which == 1:
            x = F.adjust_contrast(x, torch.tensor(1.0).uniform_(0.7, 1.3).item())
        elif which == 2:
            x = F.adjust_saturation(x, torch.tensor(1.0).uniform_(0.5, 1.5).item())
        elif which == 3:
            x = F.adjust_hue(x, torch.tensor(1.0).uniform_(-0.06, 0.06).item())
        else:
            x = F.adjust_gamma(x.clamp(1e-8, 1.0), torch.tensor(1.0).uniform_(0.7, 1.3).item())
    bilinear = transforms.InterpolationMode.BILINEAR
    x = transforms.Pad(size // 2, padding_mode=padding)(x)
    x = transforms.RandomAffine([-15, 15], translate=(1 / 16, 1 / 16), scale=(0.9, 1.1), interpolation=bilinear)(x)
    if blur:
        x = transforms.GaussianBlur(5, sigma=[0.001, 0.5])(x)
    x = transforms.RandomHorizontalFlip(0.5)(transforms.CenterCrop(size)(x))
    if blur:
        x = x + 0.005 * torch.randn(x.size())
    return x.clip(0, 1)


class RPL:
    def __init__(self, net, loss=None, *, lr, q=0.8, optimizer="adam"):
        self.net, self.q = batch_statistics(net), q
        net.requires_grad_(False)
        weights = [p.requires_grad_(True) for p in norm_weights(net)]
        self.optimizer = optimizer_of(optimizer, weights, lr)

    def __call__(self, x):
        z = self.net(x)
        own = z.softmax(1)[range(len(z)), z.argmax(1)]
        self.optimizer.zero_grad()
        ((1 - own**self.q) / self.q).mean().backward()
        self.optimizer.step()
        return z.detach()


class SHOT:
    def __init__(self, net, loss, *, lr, diversity=1.0):
        self.net, self.loss, self.diversity = net.eval(), loss, diversity
        self.optimizer = torch.optim.Adam(
            [p for name, p in net.named_parameters() if not name.startswith("linear")], lr=lr
        )

    def __call__(self, x):
        z = self.net(x)
        mean = z.softmax(1).mean(0)
        value = self.loss(z).mean() + self.diversity * sum(m * torch.log(m + 1e-5) for m in mean)
        self.optimizer.zero_grad()
        value.backward()
        self.optimizer.step()
        return z.detach()


class LAME:
    def __init__(self, net, loss=None, *, affinity="rbf", neighbours=5, symmetric=False):
        self.net, self.affinity, self.k, self.symmetric = net.eval(), affinity, neighbours, symmetric

    @torch.no_grad()
    def __call__(self, x):
        g = self.net.features(x)
        unary = -(self.net.linear(g).softmax(1) + 1e-10).log()
        g = g / g.norm(dim=1, keepdim=True)
        n = len(g)
        distance = torch.tensor([[(a - b).norm() for b in g] for a in g])
        if self.affinity == "linear":
            w = torch.tensor([[a @ b for b in g] for a in g])
        elif self.affinity == "knn":
            w = torch.zeros(n, n)
            for i in range(n):
                for j in sorted(range(n), key=lambda j, i=i: distance[i, j])[1 : self.k + 1]:
                    w[i, j] = 1.0
        else:
            width = sum(sorted(row.tolist())[min(self.k, n) - 1] for row in distance) / n
            w = torch.exp(-(distance**2) / (2 * width**2))
        if self.symmetric:
            w = (w + w.T) / 2
        y, old = (-unary).softmax(1), math.inf
        for i in range(100):
            pairwise = w @ y
            y = (-unary + pairwise).softmax(1)
            energy = (unary * y - pairwise * y + y * y.clip(1e-20).log()).sum().item()
            if i > 1 and abs(energy - old) <= 1e-8 * abs(old):
                break
            old = energy
        return y


class ROID:
    """``filtered`` is CMF: (alpha, gamma, q) of its filter."""

    def __init__(self, net, loss, *, lr, optimizer="adam", filtered=None):
        self.net, self.loss = batch_statistics(net), loss
        net.requires_grad_(False)
        self.weights = [p.requires_grad_(True) for p in norm_weights(net)]
        self.optimizer = optimizer_of(optimizer, self.weights, lr)
        self.source = [p.detach().clone() for p in self.weights]
        self.hidden, self.variance, self.filtered = [p.clone() for p in self.source], 0.0, filtered
        self.mean = None

    def __call__(self, x):
        z = self.net(x)
        p = z.detach().softmax(1)
        if self.mean is None:
            self.mean = torch.full((p.shape[1],), 1 / p.shape[1])
        diversity = torch.stack([1 - torch.cosine_similarity(self.mean, one, dim=0) for one in p])
        diversity = (diversity - diversity.min()) / (diversity.max() - diversity.min())
        certainty = -entropy(z.detach())
        certainty = (certainty - certainty.min()) / (certainty.max() - certainty.min())
        weights = torch.exp(diversity * certainty * 3)
        self.mean = 0.9 * self.mean + 0.1 * p.mean(0)
        chosen = [i for i in range(len(x)) if diversity[i] >= diversity.mean()]
        losses = self.loss(z)
        copies = self.net(augment(x[chosen], "reflect", blur=False))
        value = 0.0
        for copy, i in zip(copies, chosen, strict=True):
            a, b = copy.log_softmax(0), z[i].log_softmax(0)
            both = -0.5 * (b.exp() * a).sum() - 0.5 * (a.exp() * b).sum()
            value = value + weights[i] * (losses[i] + both) / len(x)
        self.optimizer.zero_grad()
        value.backward()
        self.optimizer.step()
        self.mix()
        z, prior = z.detach(), p.mean(0)
        smooth = max(1 / z.shape[0], 1 / z.shape[1]) / prior.max()
        return z * (prior + smooth) / (1 + smooth * z.shape[1])

    @torch.no_grad()
    def mix(self):
        if self.filtered is None:
            for weight, source in zip(self.weights, self.source, strict=True):
                weight.copy_(0.99 * weight + 0.01 * source)
            return
        alpha, gamma, q = self.filtered
        q = q * sum(p.numel() for p in self.weights) / 38400
        variance = alpha**2 * self.variance + q
        beta = min(max((1 - q) / (variance + 1 - q), 0.89), 1.0)
        beta = 1.0 if beta >= 0.9999 else beta
        self.variance = beta * variance
        for k, (weight, source) in enumerate(zip(self.weights, self.source, strict=True)):
            predicted = alpha * self.hidden[k] + (1 - alpha) * source
            self.hidden[k] = beta * predicted + (1 - beta) * weight
            weight.copy_(gamma * weight + (1 - gamma) * self.hidden[k])


class CoTTA:
    def __init__(self, net, loss=None, *, lr, views, confidence, restore, symmetric=False, momentum=0.999, mask=None):
        self.net = batch_statistics(net)
        self.teacher, self.anchor = deepcopy(net), deepcopy(net)
        self.optimizer = torch.optim.Adam(list(net.parameters()), lr=lr)
        self.views, self.confidence, self.restore = views, confidence, restore
        self.symmetric, self.momentum, self.mask = symmetric, momentum, mask

    def __call__(self, x):
        z = self.net(x)
        with torch.no_grad():
            sure = self.anchor(x).softmax(1).max(1).values.mean()
            if sure < self.confidence:
                taught = sum(self.teacher(augment(x, "edge", blur=True)) for _ in range(self.views)) / self.views
            else:
                taught = self.teacher(x)
        losses = -(taught.softmax(1) * z.log_softmax(1)).sum(1)
        if self.symmetric:
            losses = 0.5 * losses - 0.5 * (z.softmax(1) * taught.log_softmax(1)).sum(1)
        self.optimizer.zero_grad()
        losses.mean().backward()
        self.optimizer.step()
        with torch.no_grad():
            for own, new in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                own.copy_(self.momentum * own + (1 - self.momentum) * new)
            if self.restore:
                for own, source in zip(self.net.parameters(), self.anchor.parameters(), strict=True):
                    back = self.mask(own.shape) < self.restore
                    own[back] = source[back]
        return taught


class MovedNorm(nn.Module):
    """BatchNorm that normalises by its statistics after they have moved."""

    def __init__(self, layer, alpha):
        super().__init__()
        self.mean, self.var = layer.running_mean.clone(), layer.running_var.clone()
        self.weight, self.bias, self.eps, self.alpha = layer.weight, layer.bias, layer.eps, alpha

    def forward(self, x):
        mean, var = self.mean, self.var
        if self.training:
            flat = x.transpose(0, 1).flatten(1)
            mean = (1 - self.alpha) * mean + self.alpha * flat.mean(1)
            var = (1 - self.alpha) * var + self.alpha * ((flat - flat.mean(1, keepdim=True)) ** 2).mean(1)
            self.mean, self.var = mean.detach(), var.detach()
        one = (1, -1, 1, 1)
        x = (x - mean.view(one)) / torch.sqrt(var.view(one) + self.eps)
        return x * self.weight.view(one) + self.bias.view(one)


class RoTTA:
    def __init__(self, net, loss=None, *, lr, capacity, every, alpha=0.05, momentum=0.999):
        for name, module in list(net.named_children()):
            if isinstance(module, nn.BatchNorm2d):
                setattr(net, name, MovedNorm(module, alpha))
        net.requires_grad_(False)
        weights = [p for m in net.modules() if isinstance(m, MovedNorm) for p in (m.weight, m.bias)]
        self.optimizer = torch.optim.Adam([p.requires_grad_(True) for p in weights], lr=lr)
        self.net, self.teacher = net, deepcopy(net).requires_grad_(False)
        self.capacity, self.every, self.momentum = capacity, every, momentum
        self.memory, self.seen = [], 0  # dictionaries; of one class in the order of arrival

    def score(self, item, classes):
        return 1 / (1 + math.exp(-item["age"] / self.capacity)) + item["entropy"] / math.log(classes)

    def remember(self, image, label, h, classes):
        new = {"image": image, "label": label, "entropy": h, "age": 0}
        counts = [sum(item["label"] == c for item in self.memory) for c in range(classes)]
        if counts[label] >= self.capacity / classes:
            rivals = [item for item in self.memory if item["label"] == label]
        elif len(self.memory) < self.capacity:
            rivals = None
        else:
            most = [c for c in range(classes) if counts[c] == max(counts)]
            rivals = [item for c in most for item in self.memory if item["label"] == c]
        enters = True
        if rivals:
            worst = rivals[0]
            for item in rivals:
                if self.score(item, classes) >= self.score(worst, classes):
                    worst = item
            enters = self.score(worst, classes) > self.score(new, classes)
            if enters:
                self.memory = [item for item in self.memory if item is not worst]
        if enters:
            self.memory.append(new)
        for item in self.memory:
            item["age"] += 1

    def __call__(self, x):
        with torch.no_grad():
            self.net.eval()
            self.teacher.eval()
            z = self.teacher(x)
        for image, row, h in zip(x, z, entropy(z), strict=True):
            self.remember(image, int(row.argmax()), float(h), z.shape[1])
            self.seen += 1
            if self.seen % self.every == 0:
                self.study()
        return z

    def study(self):
        items = sorted(self.memory, key=lambda item: item["label"])
        images = torch.stack([item["image"] for item in items])
        ages = torch.tensor([item["age"] / self.capacity for item in items])
        self.net.train()
        self.teacher.train()
        copies = augment(images, "edge", blur=True)
        taught, z = self.teacher(images), self.net(copies)
        losses = -(taught.softmax(1) * z.log_softmax(1)).sum(1) * torch.exp(-ages) / (1 + torch.exp(-ages))
        self.optimizer.zero_grad()
        losses.mean().backward()
        self.optimizer.step()
        with torch.no_grad():
            for own, new in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                own.copy_(self.momentum * own + (1 - self.momentum) * new)


class MEMO:
    """``views(image)`` gives the copies of one image (1, 3, H, W)."""

    def __init__(self, net, loss, *, lr, views, prior):
        self.net, self.loss, self.lr, self.views, self.n = net.eval(), loss, lr, views, prior
        self.layers = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
        self.source = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in self.layers]
        for layer, source in zip(self.layers, self.source, strict=True):
            layer.forward = lambda x, layer=layer, source=source: self.mixed(layer, x, *source)

    def mixed(self, layer, x, mean, var):
        flat = x.detach().transpose(0, 1).flatten(1)
        mean = (self.n * mean + flat.mean(1)) / (self.n + 1)
        var = (self.n * var + flat.var(1)) / (self.n + 1)
        return nn.functional.batch_norm(x, mean, var, layer.weight, layer.bias, False, 0.0, layer.eps)

    def __call__(self, x):
        start, rows = deepcopy(self.net.state_dict()), []
        for image in x.split(1):
            self.net.load_state_dict(start)
            if hasattr(self.loss, "reset"):
                self.loss.reset()
            p = self.net(self.views(image)).softmax(1).mean(0, keepdim=True)
            gradients = torch.autograd.grad(self.loss(p.log()).sum(), list(self.net.parameters()))
            with torch.no_grad():
                for weight, gradient in zip(self.net.parameters(), gradients, strict=True):
                    weight -= self.lr * gradient
                rows.append(self.net(image))
        self.net.load_state_dict(start)
        return torch.cat(rows)
