"""The command line. Each command imports what it uses when it runs, so that `polycl --help` answers at once."""

import sys
import warnings

import typer

from polycl.cli import (
    annotate,
    audit,
    backup,
    bench,
    corrector,
    doctor,
    evaluate,
    experiment,
    finetune,
    imports,
    labels,
    models,
    pretrain,
    propagate,
    propagation,
    refine,
    seg,
    segment,
    serve,
    users,
)
from polycl.errors import PolyclError

app = typer.Typer(
    name="polycl",
    help="Outline organs on CT, and learn from every label saved.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("serve")(serve.serve)
app.command("segment")(segment.segment)
app.command("refine")(refine.refine)
app.command("propagate")(propagate.propagate)
app.command("annotate")(annotate.annotate)
app.command("evaluate")(evaluate.evaluate)
app.command("import")(imports.import_)
app.command("pretrain")(pretrain.pretrain)
app.command("finetune")(finetune.finetune)
app.command("train-propagation")(propagation.train_propagation)
app.command("train-corrector")(corrector.train_corrector)
app.command("audit")(audit.audit)
app.command("backup")(backup.backup)
app.command("restore")(backup.restore)
app.add_typer(models.app, name="models")
app.add_typer(labels.app, name="labels")
app.add_typer(seg.app, name="seg")
app.add_typer(users.app, name="users")
app.add_typer(experiment.app, name="experiment")
app.command("doctor")(doctor.doctor)
app.command("bench")(bench.bench)


def main() -> None:
    """Run `polycl`. Exit code 0 done, 2 bad usage, 1 failed with one line on stderr, 130 interrupted."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # libraries' notes to their own developers
    try:
        app()
    except PolyclError as error:
        print(f"polycl: {' '.join(error.in_full().split())}", file=sys.stderr)  # noqa: T201
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
