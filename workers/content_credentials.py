"""Content Credentials (C2PA 2.2): a signed statement in a picture that a model made it.

Needs the extra `c2pa` and the operator's certificate. A signature has a time and a serial number of
its own, so signed pictures of the same request differ in their bytes, though not in their pixels.
"""

import io
from pathlib import Path
from threading import Lock
from typing import Any, Final

from PIL import Image

from service.core import png
from service.core.errors import ConfigurationError

SOURCE_TYPE: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_MANIFEST: Final[dict[str, Any]] = {
    "claim_generator_info": [{"name": "imageprompt"}],
    "assertions": [
        {
            "label": "c2pa.actions",
            "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE}]},
        }
    ],
}
_SETTINGS: Final[dict[str, Any]] = {"builder": {"thumbnail": {"enabled": False}}}
"""A thumbnail would take ten times as long and 30 kB."""


class ContentCredentials:
    """Signs pictures with one key."""

    def __init__(self, certificates: Path | None, key: Path | None) -> None:
        """`certificates` is a PEM file of the signer's certificate and its issuers, `key` its key.

        Raises `ConfigurationError` where a file or the package is absent, or they do not sign.
        """
        if certificates is None or key is None:
            raise ConfigurationError(
                "IMAGEPROMPT_PROVENANCE=c2pa needs IMAGEPROMPT_C2PA_CERTIFICATES and "
                "IMAGEPROMPT_C2PA_KEY, two PEM files"
            )
        try:
            import c2pa  # noqa: PLC0415 - an optional extra
        except ImportError:
            raise ConfigurationError(
                "IMAGEPROMPT_PROVENANCE=c2pa needs the extra: pip install 'imageprompt[c2pa]'"
            ) from None
        try:
            chain, secret = certificates.read_bytes(), key.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"{error.filename}: {error.strerror}") from None
        self._lock = Lock()
        self._c2pa = c2pa
        try:
            info = c2pa.C2paSignerInfo(_algorithm(secret), chain, secret, b"")
            info.ta_url = None  # no time stamp from a server
            self._signer = c2pa.Signer.from_info(info)
            self._context = c2pa.Context.from_dict(_SETTINGS)
            self.sign(png.encode(Image.new("RGB", (1, 1))), "image/png")
        except (c2pa.C2paError, ValueError) as error:
            raise ConfigurationError(
                f"{certificates} and {key} cannot sign pictures: {error}"
            ) from None

    def sign(self, data: bytes, content_type: str) -> bytes:
        """The same picture with a signed manifest; nothing may change in it afterwards."""
        signed = io.BytesIO()
        with self._lock, self._c2pa.Builder(_MANIFEST, context=self._context) as builder:
            builder.sign(self._signer, content_type, io.BytesIO(data), signed)
        return signed.getvalue()


def _algorithm(key: bytes) -> bytes:
    """C2PA's name for what a private key signs with. Raises `ValueError` for other keys."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: PLC0415 - extra
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415 - extra
        load_pem_private_key,
    )

    loaded = load_pem_private_key(key, None)
    if isinstance(loaded, ec.EllipticCurvePrivateKey):
        names = {256: b"es256", 384: b"es384", 521: b"es512"}
        if loaded.curve.key_size in names:
            return names[loaded.curve.key_size]
    if isinstance(loaded, ed25519.Ed25519PrivateKey):
        return b"ed25519"
    if isinstance(loaded, rsa.RSAPrivateKey):
        return b"ps256"
    raise ValueError("C2PA signs with ECDSA (P-256, P-384, P-521), Ed25519 and RSA keys")
