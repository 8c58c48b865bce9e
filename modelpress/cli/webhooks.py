"""The client's commands on webhooks, `modelpress webhooks …`. They need a key with the scope `admin`."""

from collections.abc import Callable
from typing import Annotated

import typer

from modelpress.cli.connection import Url, connect
from modelpress.cli.output import Json, print_json, print_json_lines
from modelpress.cli.terminal import STDOUT, paragraph
from modelpress.contract.webhook import Delivery, EventName, IssuedWebhook

WebhookId = Annotated[str, typer.Argument(metavar="ID", help="The webhook's id.")]


def register(application: typer.Typer) -> None:
    """Add the group of commands to the application."""
    group = typer.Typer(no_args_is_help=True, help="Have events of jobs posted to an address of yours.")
    names: dict[str, Callable[..., None]] = {
        "create": create,
        "list": list_all,
        "test": test,
        "deliveries": deliveries,
        "retry": retry,
        "rotate": rotate,
        "delete": delete,
    }
    for name, command in names.items():
        group.command(name)(command)
    application.add_typer(group, name="webhooks", rich_help_panel="Client")


def create(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="Where events are posted to, https://…")],
    events: Annotated[
        list[EventName] | None,
        typer.Option("--event", help="An event to send; default: those of a job's end. Repeatable."),
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Make a webhook, and print its id and its secret, which is shown this once."""
    with connect(url) as client:
        tell(client.create_webhook(address, events or None), as_json)


def list_all(url: Url = None, as_json: Json = False) -> None:
    """List the webhooks of the team, newest first."""
    with connect(url) as client:
        found = client.webhooks()
    if as_json:
        print_json_lines(found)
        return
    for each in found:
        state = "disabled" if each.disabled_at else ", ".join(each.events)
        STDOUT.print(paragraph(f"{each.id}  {each.url}  {state}"))


def test(webhook_id: WebhookId, url: Url = None, as_json: Json = False) -> None:
    """Have a test event sent, and print the delivery."""
    with connect(url) as client:
        tell_delivery(client.test_webhook(webhook_id), as_json)


def deliveries(webhook_id: WebhookId, url: Url = None, as_json: Json = False) -> None:
    """List what was sent to a webhook, or waits to be, newest first."""
    with connect(url) as client:
        for each in client.deliveries(webhook_id):
            tell_delivery(each, as_json)


def retry(
    webhook_id: WebhookId,
    delivery_id: Annotated[int, typer.Argument(metavar="DELIVERY", help="Number of the delivery.")],
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Send a delivery again, whatever became of it."""
    with connect(url) as client:
        tell_delivery(client.retry_delivery(webhook_id, delivery_id), as_json)


def rotate(webhook_id: WebhookId, url: Url = None, as_json: Json = False) -> None:
    """Give a webhook another secret, and print it. For a day, the old one is used to sign, too."""
    with connect(url) as client:
        tell(client.rotate_webhook(webhook_id), as_json)


def delete(webhook_id: WebhookId, url: Url = None) -> None:
    """Delete a webhook with its log; what waits for it is not sent any more."""
    with connect(url) as client:
        client.delete_webhook(webhook_id)
    STDOUT.print(f"Webhook {webhook_id} is deleted.", markup=False)


def tell(webhook: IssuedWebhook, as_json: bool) -> None:
    """Print a webhook with its secret."""
    if as_json:
        print_json(webhook)
    else:
        STDOUT.print(paragraph(f"{webhook.id}  {webhook.secret}"))


def tell_delivery(delivery: Delivery, as_json: bool) -> None:
    """Print a delivery."""
    if as_json:
        print_json(delivery)
    else:
        why = f"  {delivery.error}" if delivery.error else ""
        subject = f" {delivery.job}" if delivery.job else ""
        STDOUT.print(paragraph(f"{delivery.id}  {delivery.event}{subject}  {delivery.state}{why}"))
