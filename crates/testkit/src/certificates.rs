//! Certificates that live as long as a test.

use rcgen::{BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

/// A certificate with its key.
pub struct Signed {
    pub(crate) certificate: Certificate,
    pub(crate) key: KeyPair,
}

impl Signed {
    /// The certificate as PEM.
    pub fn certificate(&self) -> String {
        self.certificate.pem()
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
        Signed { certificate, key }
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
