use http_client::TlsIdentity;
use hyper::Method;
use testkit::Auth;
use testkit::image::{MANIFEST, TestImage, noise};
use testkit::registry::{Action, Fault, Registry, TokenAuth};

use super::*;

const REPO: &str = "team/app";

fn repository(registry: &Registry, keys: Arc<Keys>) -> Repository {
    let name = reference(&format!("{}/{REPO}", registry.host()));
    client(plain(&registry.host())).repository(&name, keys).expect("a repository")
}

fn token_auth(change: impl FnOnce(&mut TokenAuth)) -> Registry {
    let mut auth = TokenAuth::default();
    change(&mut auth);
    Registry::builder().auth(Auth::Token(auth)).start()
}

async fn push_image(repository: &Repository, image: &TestImage) -> Result<(), Error> {
    for bytes in image.layers.iter().chain([&image.config]) {
        repository.push_blob(&layer(bytes), Arc::new(bytes.clone()), &[], UploadMode::Whole).await?;
    }
    repository.push_manifest(&tag("v1"), MANIFEST, image.manifest.clone()).await.map(drop)
}

fn image() -> TestImage {
    TestImage::of_layers(vec![noise(1, 1000), noise(2, 2000)])
}

#[tokio::test]
async fn every_kind_of_login_pushes_and_pulls() {
    let refresh = Credential::Refresh(Secret::new("refresh-me"));
    for (name, registry, credential) in [
        ("basic", Registry::builder().auth(Auth::basic()).start(), login("hull", "works")),
        ("token by GET", token_auth(|auth| auth.post = false), login("hull", "works")),
        ("token by POST", token_auth(|auth| auth.get = false), login("hull", "works")),
        ("refresh token by POST", token_auth(|auth| auth.get = false), refresh.clone()),
        ("refresh token by GET", token_auth(|auth| auth.post = false), refresh),
    ] {
        let keys = Keys::of(&registry.host(), credential);
        let repository = repository(&registry, keys.clone());
        let image = image();
        push_image(&repository, &image).await.unwrap_or_else(|error| panic!("{name}: {}", chain(&error)));
        let resolved = repository.resolve(&tag("v1")).await.expect("pushed");
        assert_eq!(resolved.descriptor.digest, image.digest(), "{name}");
        assert_eq!(read(&repository, &layer(&image.layers[0])).await.expect("pushed"), image.layers[0]);
        assert_eq!(keys.asked(), 1, "{name}: credentials are asked for once per repository");
    }
}

#[tokio::test]
async fn public_images_need_no_credentials_but_a_token() {
    let registry = Registry::builder().auth(Auth::token()).start();
    let image = image();
    image.put(&registry, REPO, "v1");
    let keys = Arc::new(Keys::default());
    let repository = repository(&registry, keys.clone());
    repository.resolve(&tag("v1")).await.expect("public");
    for bytes in &image.layers {
        read(&repository, &layer(bytes)).await.expect("public");
    }
    assert_eq!(registry.count(&Method::GET, "/token"), 1, "one token serves all requests of one scope");
    let unauthorized = registry.requests().iter().filter(|request| request.status == 401).count();
    assert_eq!(unauthorized, 1, "the challenge is learned once");

    let error = push_image(&repository, &image_two()).await.expect_err("nobody may push");
    assert_eq!(error.class(), Class::Unauthorised);
    assert!(
        chain(&error).contains(&format!(
            "registry answered 401 (unauthorized: authentication required); no login for `{}` was found",
            registry.host()
        )),
        "{}",
        chain(&error)
    );
}

fn image_two() -> TestImage {
    TestImage::of_layers(vec![noise(77, 10)])
}

#[tokio::test]
async fn wrong_passwords_are_refused_without_being_told() {
    for (registry, words) in [
        (Registry::builder().auth(Auth::basic()).start(), "registry answered 401"),
        (
            Registry::builder().auth(Auth::token()).start(),
            "token server `HOST` answered 401 (incorrect username or password)",
        ),
    ] {
        let words = words.replace("HOST", &registry.host());
        let keys = Keys::of(&registry.host(), login("hull", "hunter2"));
        let repository = repository(&registry, keys.clone());
        let error = repository.resolve(&tag("v1")).await.expect_err("refused");
        assert_eq!(error.class(), Class::Unauthorised, "{error}");
        let text = format!("{} {error:?}", chain(&error));
        assert!(text.contains(&words) && !text.contains("hunter2"), "{text}");
        assert!(!text.contains("no login"), "{text}");
    }
}

#[tokio::test]
async fn tokens_that_stop_working_are_renewed_once() {
    let registry = Registry::builder().auth(Auth::token()).start();
    let image = image();
    image.put(&registry, REPO, "v1");
    let keys = Keys::password(&registry.host());
    let repository = repository(&registry, keys.clone());
    repository.resolve(&tag("v1")).await.expect("logged in");
    registry.revoke_tokens();
    read(&repository, &layer(&image.layers[0])).await.expect("logged in again");
    assert_eq!(registry.count(&Method::GET, "/token"), 2);
    assert_eq!(keys.asked(), 2, "credentials are asked for again, they may have changed");

    // A registry that says 403 of stale tokens, and then of fresh ones too.
    registry.fault(Fault::on(Method::GET, "/blobs/", Action::status(403)).times(1));
    read(&repository, &layer(&image.layers[0])).await.expect("a stale token");
    registry.forget_requests();
    registry.fault(Fault::on(Method::GET, "/blobs/", Action::status(403)));
    let error = read(&repository, &layer(&image.layers[0])).await.expect_err("really denied");
    assert_eq!(error.class(), Class::Denied);
    assert_eq!(registry.count(&Method::GET, "/blobs/"), 2, "once more, not for ever");
}

#[tokio::test]
async fn a_refusal_after_a_fresh_login_is_final() {
    let registry = token_auth(|auth| auth.forbidden = vec!["team/".to_owned()]);
    let keys = Keys::password(&registry.host());
    let repository = repository(&registry, keys.clone());
    let error = repository.resolve(&tag("v1")).await.expect_err("not ours");
    assert_eq!(error.class(), Class::Unauthorised, "{error}");
    assert!(registry.count(&Method::HEAD, "/manifests/") <= 2, "{:?}", registry.requests());
    assert!(registry.count(&Method::GET, "/token") <= 2);
}

#[tokio::test]
async fn tokens_are_kept_apart_by_credential_and_scope() {
    let registry = Registry::builder().auth(Auth::token()).start();
    let image = image();
    image.put(&registry, REPO, "v1");
    let client = client(plain(&registry.host()));
    let name = reference(&format!("{}/{REPO}", registry.host()));
    let anonymous = client.repository(&name, Arc::new(Anonymous)).expect("a repository");
    anonymous.resolve(&tag("v1")).await.expect("public");
    // Another build of the same process, with a login: it must not ride on the anonymous token.
    let keys = Keys::password(&registry.host());
    let own = client.repository(&name, keys.clone()).expect("a repository");
    own.push_manifest(&tag("v2"), MANIFEST, image.manifest.clone()).await.expect("allowed");
    // And the other way round.
    let error = anonymous.push_manifest(&tag("v3"), MANIFEST, image.manifest.clone()).await.expect_err("anonymous");
    assert_eq!(error.class(), Class::Unauthorised);
    // A further build with the same login shares the token.
    let tokens = registry.count(&Method::GET, "/token");
    let again = client.repository(&name, Keys::password(&registry.host())).expect("a repository");
    again.push_manifest(&tag("v4"), MANIFEST, image.manifest).await.expect("allowed");
    assert_eq!(registry.count(&Method::GET, "/token"), tokens);
}

#[tokio::test]
async fn many_requests_at_once_share_one_login() {
    let registry = Registry::builder().auth(Auth::token()).start();
    let layers: Vec<Bytes> = (0..16).map(|seed| noise(seed, 1000)).collect();
    TestImage::of_layers(layers.clone()).put(&registry, REPO, "v1");
    let repository = repository(&registry, Keys::password(&registry.host()));
    repository.resolve(&tag("v1")).await.expect("logged in");
    registry.revoke_tokens();
    let descriptors: Vec<Descriptor> = layers.iter().map(layer).collect();
    let reads = descriptors.iter().map(|descriptor| read(&repository, descriptor));
    for result in futures_util::future::join_all(reads).await {
        result.expect("logged in again");
    }
    let tokens = registry.count(&Method::GET, "/token");
    assert!((2..=5).contains(&tokens), "{tokens} tokens for 16 blobs, 4 at once");
}

#[tokio::test]
async fn mounts_ask_for_both_repositories_and_do_without_if_refused() {
    let bytes = noise(5, 500);
    let registry = token_auth(|auth| auth.forbidden = vec!["secret/".to_owned()]);
    registry.put_blob("base/debian", bytes.clone());
    registry.put_blob("secret/base", bytes.clone());
    let repository = repository(&registry, Keys::password(&registry.host()));
    let source: Arc<dyn BlobSource> = Arc::new(bytes.clone());
    let from = ["base/debian".to_owned()];
    let pushed = repository.push_blob(&layer(&bytes), source.clone(), &from, UploadMode::Whole).await;
    assert_eq!(pushed.expect("mounted"), Pushed::Mounted(from[0].clone()));
    let tokens: Vec<String> = registry.requests().into_iter().filter(|r| r.path == "/token").map(|r| r.query).collect();
    let both = "scope=repository%3Abase%2Fdebian%3Apull&scope=repository%3Ateam%2Fapp%3Apull%2Cpush";
    assert!(tokens.iter().any(|query| query.contains(both)), "{tokens:?}");

    let name = reference(&format!("{}/team/other", registry.host()));
    let keys = Keys::password(&registry.host());
    let other = client(plain(&registry.host())).repository(&name, keys).expect("a repository");
    let from = ["secret/base".to_owned()];
    let pushed = other.push_blob(&layer(&bytes), source, &from, UploadMode::Whole).await;
    assert_eq!(pushed.expect("uploaded instead"), Pushed::Uploaded);
}

/// A server that wants a login for everything, at a token server of its own.
fn greedy() -> Registry {
    let server = Registry::start();
    let challenge = format!(r#"Bearer realm="{}/token",service="hullworks-test""#, server.url());
    let headers = vec![("www-authenticate", challenge)];
    server.fault(Fault::anywhere("/v2/", Action::Answer { status: 401, headers, body: String::new() }));
    server
}

#[tokio::test]
async fn a_login_is_not_for_where_redirects_lead() {
    for auth in [Auth::Open, Auth::basic(), Auth::token()] {
        let (registry, storage) = (Registry::builder().auth(auth.clone()).start(), greedy());
        let image = image();
        image.put(&registry, REPO, "v1");
        let client = client(plain(&registry.host()));
        let name = reference(&format!("{}/{REPO}", registry.host()));
        let open = || client.repository(&name, Keys::password(&registry.host())).expect("a repository");
        let repository = open();
        let (bytes, new) = (&image.layers[0], noise(9, 9));
        let digest = Digest::of(bytes);
        let manifest = Descriptor::of(MANIFEST, &image.manifest);
        let push = async || {
            let source: Arc<dyn BlobSource> = Arc::new(new.clone());
            repository.push_blob(&layer(&new), source, &["base/debian".to_owned()], UploadMode::Whole).await
        };
        registry.fault(Fault::anywhere(REPO, Action::Redirect(storage.url())));
        let mut refusals = vec![
            repository.resolve(&tag("v1")).await.map(drop),
            repository.fetch_manifest(&manifest).await.map(drop),
            read(&repository, &layer(bytes)).await.map(drop),
            repository.blob_size(&digest).await.map(drop),
            repository.blob_exists(&digest).await.map(drop),
            push().await.map(drop),
            repository.push_manifest(&tag("v2"), MANIFEST, image.manifest.clone()).await.map(drop),
        ];
        // Uploads to another host, and a blob whose rest is elsewhere.
        registry.behave();
        let location = format!("{}/v2/{REPO}/blobs/uploads/1?signature=secret-signature", storage.url());
        let begun = Action::Answer { status: 202, headers: vec![("location", location)], body: String::new() };
        registry.fault(Fault::on(Method::POST, "/blobs/uploads/", begun));
        refusals.push(push().await.map(drop));
        registry.fault(Fault::on(Method::GET, "/blobs/", Action::Cut(500)).times(1));
        registry.fault(Fault::on(Method::GET, "/blobs/", Action::Redirect(storage.url())));
        refusals.push(read(&repository, &layer(bytes)).await.map(drop));
        let words = format!(": `{}`, where a redirect leads, answered 401 (unauthorized)", storage.host());
        for (at, refusal) in refusals.into_iter().enumerate() {
            let error = refusal.expect_err("storage refuses");
            assert!(chain(&error).ends_with(&words) && error.is_refused_elsewhere(), "{auth:?} {at}: {error}");
        }
        let asked = storage.requests();
        assert!(asked.len() >= 10, "{auth:?}: {asked:?}");
        assert!(asked.iter().all(|r| !r.is_authorized() && r.path.starts_with("/v2/")), "{auth:?}: {asked:?}");

        // Who comes next asks the registry, and logs in to nobody else.
        registry.behave();
        open().resolve(&tag("v1")).await.unwrap_or_else(|error| panic!("{auth:?}: {}", chain(&error)));
        assert_eq!(storage.requests().len(), asked.len(), "{auth:?}: {:?}", storage.requests());
    }
}

/// Of one build only (`registry.insecure=true`), while others verify.
#[tokio::test]
async fn what_is_demanded_without_a_certificate_is_not_the_demand_of_the_host() {
    let (registry, abroad) = (Registry::builder().tls().start(), Registry::start());
    image().put(&registry, REPO, "v1");
    let challenge = format!(r#"Bearer realm="{}/token""#, abroad.url());
    let demand = Action::Answer { status: 401, headers: vec![("www-authenticate", challenge)], body: String::new() };
    registry.fault(Fault::anywhere("/v2/", demand));
    let config = RegistryConfig { ca: vec![registry.ca()], ..RegistryConfig::default() };
    let verifying = client(Registries([(registry.host(), config)].into()));
    let trusting = verifying.with_registries(Registries::default().with_insecure(&registry.host()));
    let name = reference(&format!("{}/{REPO}", registry.host()));
    let open = |client: &Client| client.repository(&name, Keys::password(&registry.host())).expect("a repository");
    open(&trusting).resolve(&tag("v1")).await.expect_err("it demands a login");
    registry.behave();
    open(&verifying).resolve(&tag("v1")).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert!(abroad.requests().is_empty(), "{:?}", abroad.requests());
}

#[tokio::test]
async fn passwords_in_bodies_stay_with_their_token_server() {
    let abroad = Registry::builder().auth(Auth::token()).start();
    let registry = token_auth(|auth| (auth.get, auth.anonymous_pull) = (false, false));
    registry.fault(Fault::on(Method::POST, "/token", Action::Redirect(abroad.url())));
    let words = format!("`{}/token`: it redirects to `{}`, where the login must not go", registry.url(), abroad.url());
    for credential in [login("hull", "works"), Credential::Refresh(Secret::new("refresh-me"))] {
        let keys = Keys::of(&registry.host(), credential.clone());
        let error = repository(&registry, keys).resolve(&tag("v1")).await.expect_err("no token");
        assert!(chain(&error).ends_with(&words), "{}", chain(&error));

        // Who fetches tokens for somebody else.
        let request = TokenRequest {
            client_id: String::new(),
            host: registry.host(),
            realm: format!("{}/token", registry.url()),
            service: "hullworks-test".to_owned(),
            scopes: vec![format!("repository:{REPO}:pull")],
        };
        let client = Pools::new(settings()).client(&TlsIdentity::default()).expect("a client");
        let error = fetch_token(&client, &request, Some(&credential)).await.expect_err("no token");
        assert!(chain(&error).ends_with(&words), "{}", chain(&error));
    }
    assert!(abroad.requests().is_empty(), "{:?}", abroad.requests());
}

/// A client that fetches tokens itself may have a password, which must not go out without encryption: what is public is had
/// without.
#[tokio::test]
async fn token_servers_without_encryption_get_no_passwords() {
    struct Theirs;
    #[async_trait]
    impl CredentialSource for Theirs {
        async fn get(&self, _: &str) -> Result<Option<Credential>, BoxError> {
            Err("it shows none".into())
        }
        async fn token_authority(&self, _: &str) -> Result<Option<Digest>, BoxError> {
            Ok(Some(Digest::of("client")))
        }
    }
    let unsent = "would get the credentials without encryption";
    // What the token server answers, and how often the registry refuses: the second time to a token that has no rights.
    let cases = [(200, 1, ""), (401, 1, unsent), (200, 2, unsent), (404, 1, "answered 404")];
    for (answer, refusals, said) in cases {
        let is_public = said.is_empty();
        let tokens = token_auth(|auth| (auth.get, auth.post) = (answer != 404, false));
        if answer == 401 {
            let refused = Action::Answer { status: 401, headers: Vec::new(), body: String::new() };
            tokens.fault(Fault::anywhere("/token", refused));
        }
        let registry = Registry::builder().tls().start();
        image().put(&registry, REPO, "v1");
        let challenge = format!(r#"Bearer realm="{}/token",service="hullworks-test""#, tokens.url());
        let headers = vec![("www-authenticate", challenge)];
        let refused = Action::Answer { status: 401, headers, body: String::new() };
        registry.fault(Fault::anywhere("/manifests/", refused).times(refusals));
        let config = RegistryConfig { ca: vec![registry.ca()], ..RegistryConfig::default() };
        let registries = Registries([(registry.host(), config)].into());
        let name = reference(&format!("{}/{REPO}", registry.host()));
        let repository = client(registries).repository(&name, Arc::new(Theirs)).expect("a repository");
        match repository.resolve(&tag("v1")).await {
            Ok(_) => assert!(is_public),
            Err(error) => assert!(!is_public && chain(&error).contains(said), "{}", chain(&error)),
        }
        assert_eq!(tokens.count(&Method::GET, "/token"), 1);
    }
}

#[tokio::test]
async fn sources_of_credentials_that_fail_are_named() {
    struct Locked;
    #[async_trait]
    impl CredentialSource for Locked {
        async fn get(&self, _: &str) -> Result<Option<Credential>, BoxError> {
            Err("the vault is sealed".into())
        }
    }
    let registry = Registry::builder().auth(Auth::basic()).start();
    let name = reference(&format!("{}/{REPO}", registry.host()));
    let repository = client(plain(&registry.host())).repository(&name, Arc::new(Locked)).expect("a repository");
    let error = repository.resolve(&tag("v1")).await.expect_err("locked");
    let host = registry.host();
    assert_eq!(chain(&error), format!("cannot get credentials for `{host}`: the vault is sealed"));
    assert_eq!(error.class(), Class::Local);
}

#[tokio::test]
async fn bearer_tokens_go_out_as_they_are() {
    let registry = Registry::builder().auth(Auth::token()).start();
    let keys = Keys::of(&registry.host(), Credential::Bearer(Secret::new("made-elsewhere")));
    let error = repository(&registry, keys).resolve(&tag("v1")).await.expect_err("unknown to the registry");
    assert_eq!(error.class(), Class::Unauthorised);
    assert!(registry.requests().iter().any(|request| request.header("authorization") == "Bearer made-elsewhere"));
    assert_eq!(registry.count(&Method::GET, "/token"), 0);
}

#[tokio::test]
async fn token_servers_that_talk_nonsense_are_named() {
    for (body, words) in [
        ("hunter2", "no JSON where a token should be"),
        (r#"{"expires_in": 5}"#, "its answer holds no token"),
        (r#"{"token": "two\nlines"}"#, "its token cannot be sent in a header"),
    ] {
        let registry = Registry::builder().auth(Auth::token()).start();
        let answer = Action::Answer { status: 200, headers: vec![], body: body.to_owned() };
        registry.fault(Fault::anywhere("/token", answer));
        let error = repository(&registry, Arc::new(Keys::default())).resolve(&tag("v1")).await.expect_err("nonsense");
        assert!(chain(&error).ends_with(words) && !chain(&error).contains("hunter2"), "{}", chain(&error));
    }
}

#[tokio::test]
async fn token_servers_that_stumble_are_asked_again() {
    let registry = Registry::builder().auth(Auth::token()).start();
    image().put(&registry, REPO, "v1");
    registry.fault(Fault::anywhere("/token", Action::status(503)).times(2));
    repository(&registry, Arc::new(Keys::default())).resolve(&tag("v1")).await.expect("the third try");
}
