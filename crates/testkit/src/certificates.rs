//! Certificates that live as long as a test.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use der::asn1::{AnyRef, BitStringRef};
use der::{Decode as _, Encode as _, Reader as _, SliceReader, Tag};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SigningKey as _,
};
use rustls::pki_types::CertificateDer;

/// A certificate with its key.
pub struct Signed {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: KeyPair,
}

impl Signed {
    /// The certificate as PEM.
    pub fn certificate(&self) -> String {
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(&self.certificate))
    }

    /// The certificate as it is signed.
    pub fn der(&self) -> Vec<u8> {
        self.certificate.to_vec()
    }

    /// The key as its kind has it (PKCS #8).
    pub fn key_der(&self) -> Vec<u8> {
        self.key.serialize_der()
    }

    /// The same in version 1 of X.509, as `openssl x509 -req` makes them where no extensions are named.
    pub fn in_version_1(self, authority: &Authority) -> Signed {
        let whole = |content: &[u8]| AnyRef::new(Tag::Sequence, content).and_then(|all| all.to_der());
        let made = AnyRef::from_der(&self.certificate).and_then(|certificate| {
            certificate.sequence(|certificate| {
                // Its number is left out, and what comes behind the key.
                let content = AnyRef::decode(certificate)?;
                let mut parts = SliceReader::new(content.value())?;
                parts.tlv_bytes()?;
                let parts = (0..6).map(|_| parts.tlv_bytes()).collect::<der::Result<Vec<_>>>()?;
                let algorithm = certificate.tlv_bytes()?;
                certificate.tlv_bytes()?;
                let content = whole(&parts.concat())?;
                let signature = authority.issuer.key().sign(&content).expect("the CA signs");
                let signature = BitStringRef::from_bytes(&signature)?.to_der()?;
                whole(&[&content, algorithm, &signature].concat())
            })
        });
        Signed { certificate: made.expect("it is well formed").into(), key: self.key }
    }

    /// The key as PEM.
    pub fn key(&self) -> String {
        self.key.serialize_pem()
    }
}

/// Who signs certificates.
pub struct Authority {
    pub(crate) certificate: Certificate,
    pub(crate) own_key: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// An authority of its own name: clients with several certificates choose by it.
    pub fn new(name: &str) -> Authority {
        let key = KeyPair::generate().expect("ring makes keys");
        let mut params = CertificateParams::new(local_names()).expect("names are valid");
        params.distinguished_name.push(DnType::CommonName, format!("hullworks test CA {name}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a CA signs itself");
        Authority { certificate, own_key: key.serialize_der(), issuer: Issuer::new(params, key) }
    }

    /// Its own certificate as PEM.
    pub fn certificate(&self) -> String {
        self.certificate.pem()
    }

    /// Its own certificate as it is signed.
    pub fn der(&self) -> Vec<u8> {
        self.certificate.der().to_vec()
    }

    /// The certificate of a server on this machine.
    pub fn server(&self) -> Signed {
        self.sign(CertificateParams::new(local_names()).expect("names are valid"))
    }

    /// The certificate of a client.
    pub fn client(&self) -> Signed {
        self.sign(client())
    }

    /// An authority below this one, which signs for what `params` allow.
    pub fn authority(&self, params: CertificateParams) -> Authority {
        let key = KeyPair::generate().expect("ring makes keys");
        let certificate = params.signed_by(&key, &self.issuer).expect("the CA signs");
        Authority { certificate, own_key: key.serialize_der(), issuer: Issuer::new(params, key) }
    }

    /// The certificate of a client that was good once.
    pub fn expired_client(&self) -> Signed {
        let mut params = client();
        params.not_before = rcgen::date_time_ymd(2019, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        self.sign(params)
    }

    /// Any certificate.
    pub fn sign(&self, params: CertificateParams) -> Signed {
        let key = KeyPair::generate().expect("ring makes keys");
        let certificate = params.signed_by(&key, &self.issuer).expect("the CA signs");
        Signed { certificate: certificate.der().clone(), key }
    }
}

fn local_names() -> Vec<String> {
    vec!["localhost".to_owned(), "127.0.0.1".to_owned()]
}

/// What a client's certificate says.
pub fn client() -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).expect("no names to refuse");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}
