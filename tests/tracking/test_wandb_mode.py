import pytest

from inpaint_dist.tracking.wandb_mode import choose_mode

LOGIN = "machine api.wandb.ai\n  login user\n  password KEY\n"


@pytest.fixture
def places(tmp_path):
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    return home, here


@pytest.mark.parametrize(
    ("environ", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "k"}, "online"),
        ({"WANDB_IDENTITY_TOKEN_FILE": "f"}, "online"),
        ({"WANDB_MODE": "online"}, "online"),
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": "k"}, "offline"),
        ({"WANDB_MODE": "dryrun", "WANDB_API_KEY": "k"}, "offline"),
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": "k"}, "none"),
        ({"WANDB_MODE": "onlin", "WANDB_API_KEY": "k"}, "offline"),
        ({"WANDB_MODE": "", "WANDB_API_KEY": ""}, "offline"),
    ],
)
def test_the_environment_decides(environ, mode, places):
    assert choose_mode(environ, *places)[0] == mode


def test_a_login_in_netrc_means_online_for_the_server_that_it_names(places):
    home, here = places
    (home / ".netrc").write_text(LOGIN)
    assert choose_mode({}, home, here) == ("online", "logged in")
    assert choose_mode({"WANDB_BASE_URL": "https://api.wandb.ai"}, home, here)[0] == "online"
    assert choose_mode({"WANDB_BASE_URL": "http://127.0.0.1:8080"}, home, here) == ("offline", "not logged in")
    (home / ".netrc").write_text("machine github.com login a password b\n")
    assert choose_mode({}, home, here)[0] == "offline"


def test_netrc_is_found_where_its_variable_says_and_a_broken_one_is_no_login(places):
    home, here = places
    named = here / "logins"
    named.write_text(LOGIN)
    assert choose_mode({"NETRC": str(named)}, home, here)[0] == "online"
    for broken in (b"machine", b"\xff\xfe\x00", b"nonsense here"):
        named.write_bytes(broken)
        assert choose_mode({"NETRC": str(named)}, home, here)[0] == "offline"


def test_what_wandb_s_own_commands_saved_is_respected(places):
    home, here = places
    (home / ".netrc").write_text(LOGIN)
    (here / "wandb").mkdir()
    (here / "wandb" / "settings").write_text("[default]\nmode = offline\n")
    assert choose_mode({}, home, here) == ("offline", "wandb's settings file says so")
    assert choose_mode({"WANDB_MODE": "online"}, home, here)[0] == "online"
    (here / "wandb" / "settings").write_text("[default]\nbase_url = http://127.0.0.1:8080\n")
    assert choose_mode({}, home, here)[0] == "offline"
    (here / "wandb" / "settings").write_text("rubbish")
    assert choose_mode({}, home, here)[0] == "online"
