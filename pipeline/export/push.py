"""A folder sent to the Hugging Face Hub, under the token that its user has logged in with."""

from pathlib import Path

from huggingface_hub import HfApi

from pipeline.run.errors import UserError, first_line


def push(folder: Path, repo: str) -> str:
    """Send the files of ``folder`` to ``repo``, such as user/network, which is made where there is
    none; returns its address. Raises UserError where that fails."""
    hub = HfApi()
    try:
        address = hub.create_repo(repo, exist_ok=True)
        hub.upload_folder(repo_id=repo, folder_path=folder)
    except Exception as error:  # of the network, of rights, of the name
        raise UserError(
            f"--push {repo}: {first_line(error)}; log in with hf auth login, or send the folder "
            f"{folder} by hand"
        ) from None
    return str(address)
