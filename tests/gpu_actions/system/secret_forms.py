"""Secrets as they appear in logs, command lines, settings and messages, and texts that look like them and must stay."""

from typing import NamedTuple


class Form(NamedTuple):
    """A text, and the parts of it that must not leave."""

    name: str
    text: str
    secrets: tuple[str, ...]


def _form(name: str, text: str, *secrets: str) -> Form:
    return Form(name, text, secrets)


_JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3In0.dozjgNryP4J3jVmNHl0w5N"
_LONG = "Zq8Lw3Rt6Yp1Vb4Nm7Kd0Hs2"
_PEM_BODY = "MIIEowIBAAKCAQEAq7Xw\nZq8Lw3Rt6Yp1Vb4Nm7Kd"

FORMS = (
    # options of engines
    _form("option with a dash", "vllm serve m --api-key hunter2 --port 1", "hunter2"),
    _form("option with an underscore", "vllm serve m --api_key hunter2 --port 1", "hunter2"),
    _form("option with =", "--api_key=hunter2 --port 1", "hunter2"),
    _form("repeated option", "--api-key hunter2 --api-key hunter3 --port 1", "hunter2", "hunter3"),
    _form("several values", "--api-key hunter2 hunter3x --port 1", "hunter2", "hunter3x"),
    _form("option of Hugging Face", "--hf_token Zq8Lw3Rt6Yp1", "Zq8Lw3Rt6Yp1"),
    _form("option of Hugging Face with a dash", "--hf-token Zq8Lw3Rt6Yp1 --tp 8", "Zq8Lw3Rt6Yp1"),
    _form("option in capitals", "--API-KEY hunter2", "hunter2"),
    _form("option in a list of arguments", "['vllm', '--api-key', 'hunter2', '--port']", "hunter2"),
    _form("quoted option", "--api-key 'hunter2 and more' --port 1", "hunter2", "and more"),
    _form("vLLM's non-default args", "non-default args: {'api_key': ['hunter2', 'hunter3']}", "hunter2", "hunter3"),
    _form("SGLang's server_args", "server_args=ServerArgs(model='m', api_key='hunter2', tp_size=8)", "hunter2"),
    _form("SecretStr", "EngineSettings(api_key=SecretStr('hunter2'), kind='x')", "hunter2"),
    # assignments
    _form("variable", "HF_TOKEN=hunter2", "hunter2"),
    _form("numbered variable", "OPENAI_API_KEY_2=hunter2", "hunter2"),
    _form("quoted variable", "export OPENAI_API_KEY='with space in it'", "with space in it"),
    _form("JSON", '{"password": "hunter2", "user": "x"}', "hunter2"),
    _form("JSON in JSON", r'{"body": "{\"api_key\": \"hunter2\", \"n\": 1}"}', "hunter2"),
    _form("JSON list", '{"api_keys": [\n "hunter2",\n "hunter3"\n]}', "hunter2", "hunter3"),
    _form("YAML", "client_secret: hunter2", "hunter2"),
    _form("bytes", "secret=b'hunter2'", "hunter2"),
    _form("AWS secret", "aws_secret_access_key = abc/def+ghi", "abc/def+ghi"),
    _form("database variable", "DB_PASS=hunter2 DB_PWD=hunter3", "hunter2", "hunter3"),
    _form("passphrase", "passphrase: hunter2", "hunter2"),
    _form("unfinished quote", 'password="hunter2 is cut off', "hunter2", "cut off"),
    _form("quote inside", "--password=hunt'er2 PASSWORD=hunt'er3", "hunt", "er2", "er3"),
    _form("short name", "pwd=hunter2 uid=sa", "hunter2"),
    _form("form in a URL", "https://h/?next=client_secret%3Dhunter2", "hunter2"),
    _form("numeric password", "password=8675309", "8675309"),
    _form("npm settings", f"//registry.npmjs.org/:_authToken={_LONG}", _LONG),
    _form("Azure connection", f"AccountName=a;AccountKey={_LONG}==;Suffix=x", _LONG),
    _form("Docker settings", '{"auths": {"r.io": {"auth": "Ym90Omh1bnRlcjI="}}}', "Ym90Omh1bnRlcjI"),
    _form("netrc", "machine h login bot password hunter2", "hunter2"),
    # headers
    _form("bearer", "Authorization: Bearer abc.def-ghi_jkl=", "abc.def-ghi_jkl"),
    _form("bearer without a header", f"sent bearer {_LONG}", _LONG),
    _form("basic", "authorization: basic Ym90Omh1bnRlcjI=", "Ym90Omh1bnRlcjI"),
    _form("header in JSON", '{"Authorization": "Bearer hunter2"}', "hunter2"),
    _form("header without a scheme", "Authorization: hunter2", "hunter2"),
    _form("AWS signature", "Authorization: AWS4-HMAC-SHA256 SignedHeaders=h, Signature=abcdef0123456789", "abcdef0123"),
    _form("API key header", "x-api-key: hunter2", "hunter2"),
    _form("cookie", "Cookie: session=hunter2; d=hunter3", "hunter2", "hunter3"),
    # URLs
    _form("URL", "postgresql://bot:hunter2@db:5432/x", "hunter2"),
    _form("URL with a slash in it", "postgresql://bot:hunt/er2@db:5432/x", "hunt/er2", "er2"),
    _form("URL with a slash and digits", "redis://bot:12/hunter2@db", "hunter2"),
    _form("web URL with a slash", "https://bot:hunt/er2@proxy/x", "er2"),
    _form("URL with an @ in it", "mysql://bot:hunt@er2/x@db/x", "hunt", "er2"),
    _form("URL without a user", "redis://:hunter2@db", "hunter2"),
    _form("URL with a token", f"https://{_LONG}@sentry.io/1", _LONG),
    _form("two URLs", "amqp://a:hunter2@h1,amqp://a:hunter3@h2", "hunter2", "hunter3"),
    _form("signed URL", f"https://s3/x?X-Amz-Credential=AB12&X-Amz-Signature={_LONG}", _LONG, "AB12"),
    _form("webhook", "https://hooks.slack.com/services/T0AAA/B0BBB/Zq8Lw3Rt6Yp1", "Zq8Lw3Rt6Yp1"),
    # command lines
    _form("curl", "curl -u bot:hunter2 http://h/", "hunter2"),
    _form("sshpass", "sshpass -p hunter2 ssh h", "hunter2"),
    _form("docker login", "docker login -u bot -p hunter2 r.io", "hunter2"),
    # token formats
    _form("Slack", "token xoxb-123456-abcdef in a log", "xoxb-123456-abcdef"),
    _form("Slack app", "app xapp-1-A0000-111", "xapp-1-A0000-111"),
    _form("OpenAI", "key sk-proj-abcdefgh1234", "abcdefgh1234"),
    _form("AWS", "AKIAIOSFODNN7EXAMPLE is one", "IOSFODNN7EXAMPLE"),
    _form("Hugging Face", f"huggingface hf_{_LONG}", _LONG),
    _form("GitHub", f"push with ghp_{_LONG}", _LONG),
    _form("GitHub fine-grained", "github_pat_11AAAAAAA0abcdef", "11AAAAAAA0abcdef"),
    _form("GitLab", "glpat-Zq8Lw3Rt6Yp1Vb4Nm7Kd", "Zq8Lw3Rt6Yp1"),
    _form("NVIDIA", f"pull nvapi-{_LONG}", _LONG),
    _form("Google", f"AIza{_LONG}Zq8Lw3Rt6Yp", _LONG),
    _form("JWT", f"session {_JWT}", _JWT.split(".")[1], _JWT.split(".")[2]),
    _form("JWT without a signature", f"session {_JWT.rpartition('.')[0]}", _JWT.split(".")[1]),
    _form("Grafana", f"glsa_{_LONG}_1a2b", _LONG),
    _form("Vault", f"hvs.{_LONG}", _LONG),
    _form("Groq", f"gsk_{_LONG}", _LONG),
    _form("Docker Hub", f"dckr_pat_{_LONG}", _LONG),
    _form("PyPI", f"pypi-AgEIcHlwaS5vcmc{_LONG * 3}", _LONG),
    _form("Stripe", f"sk_live_{_LONG}", _LONG),
    _form("SendGrid", f"SG.{_LONG[:22]}.{(_LONG * 2)[:43]}", _LONG[:22]),
    _form("Telegram", f"bot 123456789:AA{(_LONG * 2)[:33]}", _LONG),
    _form("Twilio", "account AC0123456789abcdef0123456789abcdef", "0123456789abcdef"),
    # keys and hashes of passwords
    _form("PEM", f"-----BEGIN RSA PRIVATE KEY-----\n{_PEM_BODY}\n-----END RSA PRIVATE KEY-----", *_PEM_BODY.split()),
    _form("PEM without its end", f"-----BEGIN PRIVATE KEY-----\n{_PEM_BODY}", *_PEM_BODY.split()),
    _form("PEM without its start", f"{_PEM_BODY}\n-----END PRIVATE KEY-----", *_PEM_BODY.split()),
    _form("password hash", "bot:$6$saltsalt$Zq8Lw3Rt6Yp1Vb4Nm7Kd", "Zq8Lw3Rt6Yp1"),
)  # fmt: skip

ORDINARY = (
    "first token: later than planned, next token: waiting, no token: the engine is dead",
    "max_new_tokens=64",
    "baseline=None",
    "--max-num-batched-tokens 8192 --tokenizer m --port 1",
    "skip_special_tokens=True, spaces_between_special_tokens=True, truncate_prompt_tokens=None",
    "ServerArgs(model_path='m', api_key=None, admin_api_key=None, tp_size=8)",
    "api_key='', token=\"\" password=",
    '{"api_key": null, "hf_token": [], "keys": {}}',
    "api_key=SecretStr('**********')",
    "--api-key None",
    "Decode batch. #running-req: 1, #token: 123, token usage: 0.02, gen throughput (token/s): 103.5",
    "Prefill batch. #new-seq: 1, #new-token: 7, #cached-token: 0",
    "pad_token='<pad>', eos_token=\"<|endoftext|>\"",
    "max_tokens=16, prompt_tokens=5, total_tokens: 21",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "commit 16845da1c748013400155cb0e190f296633fc5ac",
    "plan hash 4f2a91c07be3",
    "GPU-12345678-aaaa-bbbb-cccc-1234567890ab",
    "request 3f2b8a1e-77aa-4d5e-9c55-1234567890ab",
    "X-Request-Id: 8f14e45fceea167a5a36dedd4bea2543",
    "PWD=/srv/engine OLDPWD=/root LD_LIBRARY_PATH=/usr/lib:/opt PATH=/usr/bin",
    "/srv/models/sk-llama/hf_transfer/weights.safetensors",
    "basic functionality and bearer authentication are tested",
    "http://127.0.0.1:8000/v1/chat/completions?x=a@b",
    "https://host:8443/a@2x.png and https://github.com/org/repo@v1.2",
    "git@github.com:org/repo.git",
    "docker run -u 1000:1000 --user 0:0 image",
    "NCCL_IB_HCA=mlx5_0 NCCL_DEBUG=INFO CUDA_VISIBLE_DEVICES=0,1",
    "NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=python, GPU has fallen off the bus.",
    'vllm:generation_tokens_total{model_name="m"} 12',
    'File "/srv/a.py", line 3, in all_reduce',
    "KeyError: 'foo'",
    "keys=3 misses=2 num_key_value_heads=8",
    "pwd: /srv/engine",
    "vllm serve --ssl-keyfile /etc/key.pem --ssl-certfile /x",
    "DISK TASK SKIP ACCESS cost $1 and $5",
)
"""What an engineer needs to read."""
