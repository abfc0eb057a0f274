"""`fastlane version`, and the version of the package."""

import click


@click.command()
def version() -> int:
    """Print the version of this program.

    \b
    Example:
      fastlane version
    """
    click.echo(f"fastlane {package_version()}")
    return 0


def show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print the version for `fastlane --version`."""
    if wanted:
        click.echo(f"fastlane {package_version()}")
        ctx.exit()


def package_version() -> str:
    """Return the version of the installed package."""
    from importlib.metadata import version

    return version("fastlane-grpc")
