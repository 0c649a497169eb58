def pieces_of(recipe: Recipe, group: Group) -> int:
    """Into how many pieces each process cuts its share of a batch; UserError where that does not come out even."""
    if recipe.batch_size % group.count:
        raise UserError(
            f"batch_size {recipe.batch_size} cannot be shared by {group.count} processes; it must be a multiple of them."
        )
    own = recipe.batch_size // group.count
    micro = min(recipe.micro_batch or own, own)
    if own % micro:
        raise UserError(
            f"Each of {group.count} processes gets {own} images of a batch, no multiple of micro_batch {micro}; choose "
            "micro_batch so that it divides them."
        )
    if recipe.method in ("sat", "ddcat") and own // micro * group.count > 1 and micro % 2:
        raise UserError(
            f"The method '{recipe.method}' halves each batch, and a process takes {micro} images at a time; choose "
            "batch_size, micro_batch and the number of processes so that these are even."
        )
    return own // micro


def make_optimiser(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    settings = recipe.optimiser
    groups = parameter_groups(
        network, weight_decay=settings.weight_decay, decay_all=settings.decay_all, new_rate=settings.new_rate
    )
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)


def objective_weights(recipe: Recipe, data: Dataset, device: torch.device) -> Tensor | None:
    """Inverse frequencies of the training labels, where an attack of the recipe uses them."""
    attack = recipe.validation.config()
    names = [recipe.attack.objective] if recipe.method != "clean" else []
    names += [attack.objective] if attack is not None and recipe.validation.times else []
    if not any("class_weights" in objective_arguments(OBJECTIVES[name]) for name in names):
        return None
    return inverse_frequency_weights(class_pixels(data)).to(device)


def validation_steps(run: Run) -> set[int]:
    times = run.recipe.validation.times if run.validation is not None else 0
    return {max(1, round(run.schedule.steps * number / times)) for number in range(1, times + 1)}


def check_outputs(run: Run, batch: Batch) -> None:
    """UserError, before anything is trained, where the network does not give a logit for each class of the data."""
    with torch.no_grad(), attack_mode(run.trainee):
        logits = run.trainee(batch.images[:1])
    if logits.shape[1] != len(run.data.classes):
        raise UserError(
            f"The network gives {logits.shape[1]} classes, and '{run.data.name}' has {len(run.data.classes)}; make them "
            "agree."
        )


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    dtype = AUTOCAST.get(recipe.precision)
    # Without its cache, which would hand weights cast under no_grad to the pass that is trained through.
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=False)


@contextmanager
def arithmetic(recipe: Recipe) -> Iterator[None]:
    """TF32 on NVIDIA GPUs only where the recipe asks for it."""
    before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = recipe.precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


