//! Certificates that live as long as a test.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SigningKey as _,
};
use rustls::pki_types::CertificateDer;
use x509_cert::der::asn1::BitString;
use x509_cert::der::{Decode as _, Encode as _};

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

    /// The same in version 1 of X.509, as `openssl x509 -req` makes them where no extensions are named.
    pub fn in_version_1(self, authority: &Authority) -> Signed {
        let mut certificate = x509_cert::Certificate::from_der(&self.certificate).expect("it is well formed");
        certificate.tbs_certificate.version = x509_cert::Version::V1;
        certificate.tbs_certificate.extensions = None;
        let content = certificate.tbs_certificate.to_der().expect("it was read");
        let signature = authority.issuer.key().sign(&content).expect("the CA signs");
        certificate.signature = BitString::from_bytes(&signature).expect("it has whole bytes");
        Signed { certificate: certificate.to_der().expect("it was read").into(), key: self.key }
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

    /// The certificate of a client that was good once.
    pub fn expired_client(&self) -> Signed {
        let mut params = client();
        params.not_before = rcgen::date_time_ymd(2019, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Signed {
        let key = KeyPair::generate().expect("ring makes keys");
        let certificate = params.signed_by(&key, &self.issuer).expect("the CA signs");
        Signed { certificate: certificate.der().clone(), key }
    }
}

fn local_names() -> Vec<String> {
    vec!["localhost".to_owned(), "127.0.0.1".to_owned()]
}

fn client() -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).expect("no names to refuse");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}
