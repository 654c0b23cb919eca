"""A Gradio page that only this machine can open: no requests to other machines, no open port."""

import errno
import os
import socket
from typing import Any

from fer import UserError, extra

HOST = "127.0.0.1"


def offline_gradio(uploads: str) -> Any:
    """The module gradio, without telemetry. uploads: folder for the files that a browser sends."""
    os.environ.update(
        GRADIO_TEMP_DIR=uploads,
        GRADIO_ANALYTICS_ENABLED="False",
        GRADIO_RUN_HISTORY="False",
        HF_HUB_OFFLINE="1",
    )
    spare_proxy()
    with extra("app", "fer app"):
        import gradio
    return gradio


def spare_proxy() -> None:
    """Keep Gradio's requests to its own page away from a proxy that the environment names."""
    spared = [os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    joined = ",".join(filter(None, [*dict.fromkeys(spared), HOST]))
    os.environ.update(no_proxy=joined, NO_PROXY=joined)


def check_port(port: int) -> None:
    """Refuse a port that cannot be used, with the system's reason, which Gradio does not give."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            used = error.errno == errno.EADDRINUSE
            reason = "another program uses it" if used else f"cannot be used ({error.strerror})"
            raise UserError(f"port={port}: {reason}; choose another") from None


def serve(page: Any, port: int) -> None:
    """Serve the gradio.Blocks until Ctrl-C."""
    from gradio.themes import Default

    try:
        page.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            theme=Default(font=["sans-serif"], font_mono=["monospace"]),
            ssr_mode=False,
            quiet=True,
            show_error=True,
            prevent_thread_lock=True,
        )
    except OSError:  # its message is about Gradio's own settings
        raise UserError(
            f"port={port}: the page's server did not start there; try again, or choose another"
        ) from None
    print(f"open {page.local_url} in a browser; end with Ctrl-C", flush=True)
    page.block_thread()
