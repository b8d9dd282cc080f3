from pathlib import Path
from edgechat import paths
from edgechat.catalogue import pull
from edgechat.modelfile import content_hash
from tests.hub import FakeRepo, local_hub
from tests.models import write_tiny_llama
def test_verified_download_is_not_hashed_again(tmp_path, monkeypatch):
    with local_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.repos["own/tiny"] = FakeRepo({"tiny-F32.gguf": write_tiny_llama(tmp_path / "t.gguf")})
        path = pull.download_model(pull.find_target("own/tiny"))
    assert content_hash.known_hash(path, paths.prefix_dir() / "weights.json") is not None
