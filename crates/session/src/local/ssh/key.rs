//! Private keys: read from the files that `ssh-keygen` and `openssl` write, and used to sign.
//!
//! Ed25519, RSA (SHA-2 signatures) and ECDSA on P-256 and P-384, which is what ring can do.

use base64::Engine as _;
use ring::rand::SystemRandom;
use ring::rsa::{KeyPairComponents, PublicKeyComponents};
use ring::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaKeyPair};

use super::wire::{Reader, put_large, put_string, trimmed};

/// What OpenSSH's own format begins with.
const MAGIC: &[u8] = b"openssh-key-v1\0";
/// Flags of a request to sign (RFC 8332 by way of the agent protocol).
const RSA_SHA2_256: u32 = 2;
const RSA_SHA2_512: u32 = 4;

/// Why a file is no key that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It wants a passphrase.
    #[error("it is protected by a passphrase")]
    Passphrase,
    /// A kind that we cannot sign with.
    #[error("keys of kind {0} are not supported")]
    Unsupported(String),
    /// It is something else.
    #[error("{0}")]
    Malformed(String),
}

/// A private key. What it is made of is never shown.
pub struct Key {
    /// As SSH writes public keys.
    public: Vec<u8>,
    comment: String,
    private: Private,
}

enum Private {
    Ed25519(Ed25519KeyPair),
    Rsa(Box<RsaKeyPair>),
    Ecdsa(&'static Curve, EcdsaKeyPair),
}

struct Curve {
    name: &'static str,
    algorithm: &'static signature::EcdsaSigningAlgorithm,
}

static CURVES: [Curve; 2] = [
    Curve { name: "nistp256", algorithm: &signature::ECDSA_P256_SHA256_FIXED_SIGNING },
    Curve { name: "nistp384", algorithm: &signature::ECDSA_P384_SHA384_FIXED_SIGNING },
];

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("comment", &self.comment).finish_non_exhaustive()
    }
}

fn malformed(why: impl ToString) -> KeyError {
    KeyError::Malformed(why.to_string())
}

impl Key {
    /// Reads a file in OpenSSH's format, PKCS#1 or PKCS#8.
    pub fn parse(file: &[u8]) -> Result<Key, KeyError> {
        let (label, bytes) = unarmoured(file)?;
        match label.as_str() {
            "OPENSSH PRIVATE KEY" => Key::of_openssh(&bytes),
            "RSA PRIVATE KEY" => RsaKeyPair::from_der(&bytes).map_err(malformed).map(Key::rsa),
            "PRIVATE KEY" => Key::of_pkcs8(&bytes),
            "ENCRYPTED PRIVATE KEY" => Err(KeyError::Passphrase),
            "EC PRIVATE KEY" => Err(KeyError::Unsupported("`EC PRIVATE KEY` (`ssh-keygen -p` rewrites them)".into())),
            label => Err(KeyError::Unsupported(format!("`{label}`"))),
        }
    }

    /// The public key, as SSH writes it.
    pub(super) fn public(&self) -> &[u8] {
        &self.public
    }

    pub(super) fn comment(&self) -> &str {
        &self.comment
    }

    /// A signature as SSH writes it; none where it cannot be made as the flags want it.
    pub(super) fn sign(&self, data: &[u8], flags: u32) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        let mut out = Vec::new();
        match &self.private {
            Private::Ed25519(key) => {
                put_string(&mut out, b"ssh-ed25519");
                put_string(&mut out, key.sign(data).as_ref());
            }
            Private::Rsa(key) => {
                let (name, padding): (&[u8], &dyn signature::RsaEncoding) = match flags {
                    _ if flags & RSA_SHA2_512 != 0 => (b"rsa-sha2-512", &signature::RSA_PKCS1_SHA512),
                    _ if flags & RSA_SHA2_256 != 0 => (b"rsa-sha2-256", &signature::RSA_PKCS1_SHA256),
                    // With SHA-1, which servers do not take any more.
                    _ => return None,
                };
                let mut signed = vec![0; key.public().modulus_len()];
                key.sign(padding, &random, data, &mut signed).ok()?;
                put_string(&mut out, name);
                put_string(&mut out, &signed);
            }
            Private::Ecdsa(curve, key) => {
                let signed = key.sign(&random, data).ok()?;
                let (r, s) = signed.as_ref().split_at(signed.as_ref().len() / 2);
                let mut both = Vec::new();
                put_large(&mut both, r);
                put_large(&mut both, s);
                put_string(&mut out, format!("ecdsa-sha2-{}", curve.name).as_bytes());
                put_string(&mut out, &both);
            }
        }
        Some(out)
    }

    fn of_pkcs8(der: &[u8]) -> Result<Key, KeyError> {
        if let Ok(key) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
            return Ok(Key::ed25519(key));
        }
        if let Ok(key) = RsaKeyPair::from_pkcs8(der) {
            return Ok(Key::rsa(key));
        }
        for curve in &CURVES {
            if let Ok(key) = EcdsaKeyPair::from_pkcs8(curve.algorithm, der, &SystemRandom::new()) {
                return Ok(Key::ecdsa(curve, key));
            }
        }
        Err(KeyError::Unsupported("`PRIVATE KEY` that is neither Ed25519, RSA nor ECDSA on P-256 or P-384".into()))
    }

    fn of_openssh(bytes: &[u8]) -> Result<Key, KeyError> {
        let cut = || malformed("the key is cut short");
        let mut reader = Reader(bytes.strip_prefix(MAGIC).ok_or_else(|| malformed("it is no OpenSSH key"))?);
        let cipher = reader.string().ok_or_else(cut)?;
        if cipher != b"none" {
            return Err(KeyError::Passphrase);
        }
        let (_kdf, _options) = (reader.string().ok_or_else(cut)?, reader.string().ok_or_else(cut)?);
        let count = reader.number().ok_or_else(cut)?;
        if count != 1 {
            return Err(malformed(format!("{count} keys in one file")));
        }
        let _public = reader.string().ok_or_else(cut)?;
        let mut reader = Reader(reader.string().ok_or_else(cut)?);
        let (one, other) = (reader.number().ok_or_else(cut)?, reader.number().ok_or_else(cut)?);
        if one != other {
            return Err(malformed("its check numbers differ"));
        }
        let mut key = Key::of_fields(&mut reader)?.ok_or_else(cut)?;
        key.comment = reader.text().ok_or_else(cut)?.to_owned();
        Ok(key)
    }

    /// The fields of a kind; none where they end too soon.
    fn of_fields(reader: &mut Reader<'_>) -> Result<Option<Key>, KeyError> {
        let Some(kind) = reader.text() else { return Ok(None) };
        match kind {
            "ssh-ed25519" => {
                let Some((public, private)) = reader.string().zip(reader.string()) else { return Ok(None) };
                let Some(seed) = private.get(..32) else { return Ok(None) };
                let pair = Ed25519KeyPair::from_seed_and_public_key(seed, public).map_err(malformed)?;
                Ok(Some(Key::ed25519(pair)))
            }
            "ssh-rsa" => {
                let mut numbers = [&[][..]; 6];
                for number in &mut numbers {
                    match reader.large() {
                        Some(read) => *number = read,
                        None => return Ok(None),
                    }
                }
                let [n, e, d, inverse, p, q] = numbers;
                if p.is_empty() || q.is_empty() {
                    return Err(malformed("a prime of the key is zero"));
                }
                let (of_p, of_q) = (remainder(d, &less_one(p)), remainder(d, &less_one(q)));
                let components = KeyPairComponents {
                    public_key: PublicKeyComponents { n, e },
                    d,
                    p,
                    q,
                    dP: trimmed(&of_p),
                    dQ: trimmed(&of_q),
                    qInv: inverse,
                };
                RsaKeyPair::from_components(&components).map_err(malformed).map(|pair| Some(Key::rsa(pair)))
            }
            kind => {
                let curve = CURVES.iter().find(|curve| kind.strip_prefix("ecdsa-sha2-") == Some(curve.name));
                let Some(curve) = curve else { return Err(KeyError::Unsupported(format!("`{kind}`"))) };
                let (Some(_name), Some(public), Some(private)) = (reader.string(), reader.string(), reader.large())
                else {
                    return Ok(None);
                };
                // Half of the point's two coordinates.
                let size = public.len() / 2;
                let padded = [vec![0; size.saturating_sub(private.len())], private.to_vec()].concat();
                let random = SystemRandom::new();
                let pair = EcdsaKeyPair::from_private_key_and_public_key(curve.algorithm, &padded, public, &random);
                pair.map_err(malformed).map(|pair| Some(Key::ecdsa(curve, pair)))
            }
        }
    }

    fn ed25519(pair: Ed25519KeyPair) -> Key {
        let mut public = Vec::new();
        put_string(&mut public, b"ssh-ed25519");
        put_string(&mut public, pair.public_key().as_ref());
        Key { public, comment: String::new(), private: Private::Ed25519(pair) }
    }

    fn rsa(pair: RsaKeyPair) -> Key {
        let parts = PublicKeyComponents::<Vec<u8>>::from(pair.public());
        let mut public = Vec::new();
        put_string(&mut public, b"ssh-rsa");
        put_large(&mut public, &parts.e);
        put_large(&mut public, &parts.n);
        Key { public, comment: String::new(), private: Private::Rsa(Box::new(pair)) }
    }

    fn ecdsa(curve: &'static Curve, pair: EcdsaKeyPair) -> Key {
        let mut public = Vec::new();
        put_string(&mut public, format!("ecdsa-sha2-{}", curve.name).as_bytes());
        put_string(&mut public, curve.name.as_bytes());
        put_string(&mut public, pair.public_key().as_ref());
        Key { public, comment: String::new(), private: Private::Ecdsa(curve, pair) }
    }
}

/// What stands between the lines of RFC 7468, and what they call it.
fn unarmoured(file: &[u8]) -> Result<(String, Vec<u8>), KeyError> {
    let none = || malformed("it is no private key: no line `-----BEGIN .. PRIVATE KEY-----`");
    let text = std::str::from_utf8(file).map_err(|_| none())?;
    let mut lines = text.lines().map(str::trim);
    let label = lines.find_map(|line| line.strip_prefix("-----BEGIN ")?.strip_suffix("-----")).ok_or_else(none)?;
    if !label.ends_with("PRIVATE KEY") {
        return Err(none());
    }
    let mut body = String::new();
    for line in lines {
        if line.starts_with("-----END ") {
            break;
        }
        if line.starts_with("Proc-Type:") && line.contains("ENCRYPTED") {
            return Err(KeyError::Passphrase);
        }
        if !line.contains(':') {
            body.push_str(line);
        }
    }
    let bytes = base64::engine::general_purpose::STANDARD.decode(body).map_err(malformed)?;
    Ok((label.to_owned(), bytes))
}

/// An odd number less one.
fn less_one(number: &[u8]) -> Vec<u8> {
    let mut less = number.to_vec();
    if let Some(last) = less.last_mut() {
        *last &= !1;
    }
    less
}

/// `number` modulo `modulus`, bit by bit: this is done once for a key, by the one who owns it.
fn remainder(number: &[u8], modulus: &[u8]) -> Vec<u8> {
    // A byte more, for the bit that doubling brings.
    let modulus = [&[0], modulus].concat();
    let mut rest = vec![0; modulus.len()];
    for byte in number {
        for bit in (0..8).rev() {
            let mut carry = byte >> bit & 1;
            for digit in rest.iter_mut().rev() {
                let next = *digit >> 7;
                *digit = *digit << 1 | carry;
                carry = next;
            }
            if rest >= modulus {
                let mut borrow = false;
                for (digit, less) in rest.iter_mut().zip(&modulus).rev() {
                    let (first, one) = digit.overflowing_sub(*less);
                    let (second, two) = first.overflowing_sub(u8::from(borrow));
                    (*digit, borrow) = (second, one || two);
                }
            }
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remainders_of_long_division() {
        for (number, modulus) in [(0u64, 7u64), (6, 7), (7, 7), (u64::MAX, 251), (u64::MAX, u64::MAX - 1), (12345, 12)]
        {
            let rest = remainder(&number.to_be_bytes(), trimmed(&modulus.to_be_bytes()));
            let rest = rest.iter().fold(0u64, |all, byte| all << 8 | u64::from(*byte));
            assert_eq!(rest, number % modulus, "{number} % {modulus}");
        }
    }
}
