//! What the registry was asked.

use hyper::{HeaderMap, Method, header};

/// One request.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The method.
    pub method: Method,
    /// The path without the query.
    pub path: String,
    /// The query; empty if there is none.
    pub query: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The status that it was answered with; 0 for none.
    pub status: u16,
}

impl Recorded {
    /// A header as text; empty when absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Whether it carried credentials.
    pub fn is_authorized(&self) -> bool {
        self.headers.contains_key(header::AUTHORIZATION)
    }
}
