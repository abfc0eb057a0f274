"""`fastlane completion`: the script with which a shell completes commands and options."""

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, /, *, shell: str) -> int:
    """Print a script that makes your shell complete commands and options of fastlane.

    \b
    Examples:
      eval "$(fastlane completion bash)"                                    in ~/.bashrc
      eval "$(fastlane completion zsh)"                                     in ~/.zshrc
      fastlane completion fish > ~/.config/fish/completions/fastlane.fish   once
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    # The script sets this variable; it makes click answer with completions.
    click.echo(kind(ctx.find_root().command, {}, "fastlane", "_FASTLANE_COMPLETE").source())
    return 0
