"""A non-finite loss or gradient stops the run before the optimizer moves, and says where it came from."""

import torch
from torch import Tensor


def require_finite(term: str, per_row: Tensor, rows: list[str] | None = None) -> None:
    """Stop unless every row of a term is finite.

    Args:
        term: the term of F, as the user knows it.
        per_row: (N, ...) values; on several processes gathered, so that all ranks stop together.
        rows: (N,) what to call each row; its number by default.

    Raises:
        FloatingPointError: naming the term and the first rows.
    """
    finite = torch.isfinite(per_row.detach()).reshape(len(per_row), -1).all(dim=1)
    if bool(finite.all()):
        return
    bad = (~finite).nonzero()[:, 0].tolist()
    names = ", ".join(rows[i] if rows else str(i) for i in bad[:5]) + (", ..." if len(bad) > 5 else "")
    raise FloatingPointError(
        f"{term}: not finite in {len(bad)} of {len(finite)} rows ({names}); stopped before the optimizer moved, so "
        "the weights are those of the step before; look at these rows, or lower learning_rate"
    )


def stop_unless_finite(accelerator, term: str, loss: Tensor, per_row: Tensor) -> None:
    """Stop all processes together when the loss of one of them is not finite.

    Args:
        accelerator: of the trainer.
        term: the term of F, as the user knows it.
        loss: () the term on this process.
        per_row: (rows, ...) what the term was computed from, to name the rows.

    Raises:
        FloatingPointError: on every process; the one with the fault names its rows.
    """
    finite = torch.isfinite(loss.detach()).float().reshape(1)
    if accelerator.gather(finite).min() == 1:
        return
    require_finite(term, per_row)
    require_finite(term, loss.reshape(1), ["their sum"])
    raise FloatingPointError(f"{term}: not finite on another process; its message names the rows")


def require_finite_gradients(model) -> Tensor:
    """The norm of all gradients together; called before clipping, which would spread a NaN to all of them.

    Raises:
        FloatingPointError: naming the first parameters.
    """
    named = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([grad for _, grad in named])
    if bool(torch.isfinite(norm)):
        return norm
    bad = [name for name, grad in named if not bool(torch.isfinite(grad).all())]
    names = ", ".join(bad[:3]) + (", ..." if len(bad) > 3 else "")
    raise FloatingPointError(
        f"gradient: not finite in {len(bad)} of {len(named)} parameters ({names or 'their joint norm overflows'}); "
        "stopped before the optimizer moved; lower learning_rate, or raise precision"
    )
