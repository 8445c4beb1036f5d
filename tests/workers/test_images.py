"""A picture tells how it was made, in the words of the programs that read it."""

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from xml.etree import ElementTree as ET

import piexif
import piexif.helper
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

from service.core.catalog import ModelEntry, load_catalog
from service.core.errors import ConfigurationError
from service.core.param_types import OutputFormat, StoredUpload
from service.core.params import GenerateRequest
from service.core.picture_metadata import exif, read_recipe
from service.core.settings import ROOT, Provenance, Settings
from tests.requests import generate_request
from workers.content_credentials import SOURCE_TYPE, ContentCredentials
from workers.images import PictureEncoder, PictureFile
from workers.weights import revisions

SHA = "ab" * 32
FORMATS = ["png", "jpeg", "webp"]
LONG = "\N{ROCKET}" * 2000


def request(output_format: str, **changes: object) -> GenerateRequest:
    fields: dict[str, object] = {
        "image": (
            StoredUpload(key="uploads/a/b", sha256=SHA, pixels_sha256=SHA, width=9, height=8),
        ),
        "image_weights": (1.0,),
        "control_image": (
            StoredUpload(key="uploads/a/c", sha256=SHA, pixels_sha256=SHA, width=9, height=8),
        ),
        "control_type": "outline",
        "control_scale": 0.5,
        "control_start": 0.0,
        "control_end": 1.0,
        "prompt": LONG,
        "negative_prompt": "\N{LATIN SMALL LETTER E WITH ACUTE}" * 2000,
        "ip_scale": 0.7,
        "steps": 9,
        "scheduler": "euler",
        "seed": 40,
        "num_images": 3,
        "output_format": output_format,
        "webhook_url": "https://example.org/secret",
    }
    return generate_request(**fields | changes)


def encode(wanted: GenerateRequest, index: int = 0, **options: object) -> PictureFile:
    return PictureEncoder(**options).encode(Image.new("RGB", (64, 64), "red"), wanted, index)


def opened(file: PictureFile) -> Image.Image:
    image = Image.open(io.BytesIO(file.data))
    image.load()
    return image


@pytest.mark.parametrize("output_format", FORMATS)
def test_every_parameter_can_be_read_from_the_file(output_format: str) -> None:
    wanted = request(output_format)
    file = encode(wanted, 2)
    image = opened(file)
    assert image.format == output_format.upper()
    assert file.content_type == f"image/{output_format}"
    found = read_recipe(image)
    assert found is not None
    assert found["seed"] == 42
    assert found["num_images"] == 1
    assert found["prompt"] == wanted.prompt
    assert found["control_scale"] == 0.5
    assert found["image"][0]["sha256"] == SHA
    left_out = set(GenerateRequest.model_fields) - set(found)
    assert left_out == {"webhook_url", "preview_every"}
    assert set(found) - set(GenerateRequest.model_fields) == {"weights"}


@pytest.mark.parametrize("output_format", FORMATS)
def test_no_storage_key_leaves_with_the_picture(output_format: str) -> None:
    file = encode(request(output_format))
    assert b"uploads/" not in file.data
    assert b"secret" not in file.data


@pytest.mark.parametrize("output_format", FORMATS)
def test_same_request_gives_same_bytes(output_format: str) -> None:
    first = encode(request(output_format))
    assert encode(request(output_format)) == first


def test_the_pixels_of_a_png_are_those_that_were_made() -> None:
    image = Image.effect_noise((130, 70), 90).convert("RGB")
    file = PictureEncoder().encode(image, request("png"), 0)
    assert opened(file).tobytes() == image.tobytes()


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_other_programs_read_the_users_comment(output_format: str) -> None:
    """Its type is UNDEFINED and it begins with its character code."""
    file = encode(request(output_format))
    directory = piexif.load(file.data)["Exif"]
    comment = piexif.helper.UserComment.load(directory[piexif.ExifIFD.UserComment])
    assert json.loads(comment)["steps"] == 9
    assert directory[piexif.ExifIFD.ExifVersion] == b"0232"


def test_a_comment_beyond_ascii_has_the_character_code_for_it() -> None:
    text = json.dumps({"prompt": "caf\N{LATIN SMALL LETTER E WITH ACUTE}"}, ensure_ascii=False)
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "JPEG", exif=exif(text, ""))
    comment = piexif.load(out.getvalue())["Exif"][piexif.ExifIFD.UserComment]
    assert piexif.helper.UserComment.load(comment) == text
    assert read_recipe(Image.open(out)) == json.loads(text)


def test_generation_parameters_are_written_as_other_programs_write_theirs() -> None:
    wanted = request("png", prompt="a red star", negative_prompt="blurry", guidance_scale=7.5)
    lines = opened(encode(wanted, 1)).text["parameters"].split("\n")
    assert lines[0] == "a red star"
    assert lines[1] == "Negative prompt: blurry"
    settings = f"Steps: 9, Sampler: Euler, CFG scale: 7.5, Seed: 41, Size: {wanted.width}x"
    assert lines[2].startswith(settings)
    assert f"Model: {wanted.model}" in lines[2]
    assert 'ControlNet 0: "Module: ip-adapter-auto, Model: ' in lines[2]
    assert 'ControlNet 1: "Module: none, Model: outline, Weight: 0.5, ' in lines[2]
    jpeg = wanted.model_copy(update={"output_format": OutputFormat.JPEG})
    described = piexif.load(encode(jpeg, 1).data)
    shown = described["0th"][piexif.ImageIFD.ImageDescription].decode()
    assert shown.rstrip("\0").split("\n") == lines


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_picture_says_that_a_model_made_it_unless_the_operator_wants_otherwise(
    output_format: str,
) -> None:
    image = opened(encode(request(output_format)))
    text = image.text["XML:com.adobe.xmp"] if output_format == "png" else image.info["xmp"].decode()
    assert f'Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"' in text
    values = [value for node in ET.fromstring(text).iter() for value in node.attrib.values()]
    assert SOURCE_TYPE in values
    silent = encode(request(output_format), provenance=Provenance.NONE)
    assert b"DigitalSourceType" not in silent.data
    assert read_recipe(opened(silent)) is not None


def test_a_foreign_picture_has_no_recipe() -> None:
    assert read_recipe(Image.new("RGB", (8, 8))) is None
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "JPEG", exif=exif("made by hand", ""))
    assert read_recipe(Image.open(out)) is None


def test_the_revisions_of_the_weights_that_were_used_are_told() -> None:
    entry = load_catalog(ROOT / "models" / "shapes.yaml").models["shapes"]
    known = revisions(entry)
    wanted = request("png", model="shapes", adapter="plus")
    found = read_recipe(opened(encode(wanted, weights={"shapes": known})))
    assert found is not None
    assert found["weights"] == {
        name: known[name] for name in ("base", "adapter/plus", "control/outline")
    }
    assert str(ROOT) not in str(found)
    assert known["adapter/plus"] != known["adapter/base"]


def test_each_part_of_a_model_has_a_revision(tmp_path: Path) -> None:
    """One way to steer after the other was once forgotten here."""
    (tmp_path / "a.safetensors").write_bytes(b"a")
    source = {"path": tmp_path}
    file = source | {"weight_name": "a.safetensors"}
    entry = ModelEntry.model_validate(
        {
            "title": "all parts",
            "base": source,
            "vae": source,
            "adapters": {"base": file | {"image_encoder": "e"}},
            "controlnets": {"canny": source},
            "t2i_adapters": {"sketch": source},
            "depth_estimator": source,
            "loras": {"ink": file},
            "fused_loras": [file],
            "limits": {"min_size": 8, "max_size": 8, "max_pixels": 64},
            "defaults": {"width": 8, "height": 8, "adapter": "base"},
        }
    )
    names = {
        "base",
        "vae",
        "depth",
        "adapter/base",
        "control/canny",
        "control/sketch",
        "lora/ink",
        "base+1",
    }
    assert set(revisions(entry)) == names


def test_other_weights_under_the_same_names_have_another_revision(tmp_path: Path) -> None:
    entry = load_catalog(ROOT / "models" / "shapes.yaml").models["shapes"]
    network = tmp_path / "unet" / "model.safetensors"
    network.parent.mkdir()
    found = set()
    for content in (bytes(9_000_000), bytes(8_999_999) + b"x"):
        network.write_bytes(content)
        base = entry.base.model_copy(update={"path": tmp_path})
        found.add(revisions(entry.model_copy(update={"base": base}))["base"])
    assert len(found) == 2


# Content Credentials


@pytest.fixture
def certificates(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for signing, issued by an authority of our own, and its key."""
    now, end = datetime.now(UTC), datetime.now(UTC) + timedelta(days=1)
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def named(name: str) -> x509.Name:
        return x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test"),
                x509.NameAttribute(NameOID.COMMON_NAME, name),
            ]
        )

    def certificate(name: str, public: ec.EllipticCurvePublicKey, *, ca: bool) -> x509.Certificate:
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
        ) | {"encipher_only": False, "decipher_only": False}
        usage |= {"digital_signature": True, "key_cert_sign": ca, "crl_sign": ca}
        builder = (
            x509.CertificateBuilder(named("Root"), named(name), public, 1 + (not ca), now, end)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )
        if not ca:
            issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
            usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(issuer, critical=False)
            builder = builder.add_extension(usages, critical=False)
        return builder.sign(root_key, hashes.SHA256())

    chain, secret = tmp_path / "chain.pem", tmp_path / "key.pem"
    signer = certificate("Signer", key.public_key(), ca=False)
    root = certificate("Root", root_key.public_key(), ca=True)
    pem = serialization.Encoding.PEM
    chain.write_bytes(signer.public_bytes(pem) + root.public_bytes(pem))
    none = serialization.NoEncryption()
    secret.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none))
    return chain, secret


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_signed_picture_is_valid_until_a_byte_of_it_changes(
    certificates: tuple[Path, Path], output_format: str
) -> None:
    c2pa = pytest.importorskip("c2pa", reason="the extra c2pa is not installed")
    options = {
        "provenance": Provenance.C2PA,
        "credentials": ContentCredentials(*certificates),
    }
    file = encode(request(output_format), **options)
    assert read_recipe(opened(file))["seed"] == 40
    assert SOURCE_TYPE.encode() in file.data

    def state(data: bytes) -> tuple[str, str]:
        with c2pa.Reader(file.content_type, io.BytesIO(data)) as reader:
            found = json.loads(reader.json())
            active = found["manifests"][found["active_manifest"]]
            return found["validation_state"], json.dumps(active["assertions"])

    valid, assertions = state(file.data)
    assert valid == "Valid"
    assert SOURCE_TYPE in assertions
    assert "c2pa.created" in assertions
    at = file.data.index(b"steps") + 9
    changed = file.data[:at] + b"8" + file.data[at + 1 :]
    assert state(changed)[0] == "Invalid"
    plain = opened(encode(request(output_format)))
    assert opened(file).tobytes() == plain.tobytes()


def test_a_worker_that_cannot_sign_says_why_at_its_start(certificates: tuple[Path, Path]) -> None:
    pytest.importorskip("c2pa", reason="the extra c2pa is not installed")
    chain, key = certificates
    catalog = load_catalog(ROOT / "models" / "shapes.yaml")
    signed = PictureEncoder.from_settings(
        Settings(provenance="c2pa", c2pa_certificates=chain, c2pa_key=key), catalog
    )
    assert SOURCE_TYPE.encode() in signed.encode(Image.new("RGB", (8, 8)), request("png"), 0).data
    with pytest.raises(ConfigurationError, match="IMAGEPROMPT_C2PA_CERTIFICATES"):
        PictureEncoder.from_settings(Settings(provenance="c2pa"), catalog)
    key.write_text("nothing")
    with pytest.raises(ConfigurationError, match="cannot sign"):
        ContentCredentials(chain, key)
    key.unlink()
    with pytest.raises(ConfigurationError, match=r"key\.pem: No such file"):
        ContentCredentials(chain, key)
