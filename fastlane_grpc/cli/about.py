"""What the program says of itself: its version, and what a shell needs to complete its commands."""

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


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, /, *, shell: str) -> int:
    """Print what makes a shell complete the commands and options of fastlane.

    \b
    Examples:
      eval "$(fastlane completion bash)"                                    in ~/.bashrc
      eval "$(fastlane completion zsh)"                                     in ~/.zshrc
      fastlane completion fish > ~/.config/fish/completions/fastlane.fish   once
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    # By this variable, set by the script, click finds itself asked for completions.
    click.echo(kind(ctx.find_root().command, {}, "fastlane", "_FASTLANE_COMPLETE").source())
    return 0


def show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """For the option that every program is tried with."""
    if wanted:
        click.echo(f"fastlane {package_version()}")
        ctx.exit()


def package_version() -> str:
    from importlib.metadata import version

    return version("fastlane-grpc")
