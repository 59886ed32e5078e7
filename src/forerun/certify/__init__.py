"""Is speculation lossless here? Checks for forerun, for transformers' `generate` and for any pair of OpenAI-compatible endpoints."""

from forerun.certify.certificate import Certificate, Check, Divergence
from forerun.certify.run import CertifyConfig, certify

__all__ = ["Certificate", "CertifyConfig", "Check", "Divergence", "certify"]
