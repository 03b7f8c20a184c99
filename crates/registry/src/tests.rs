fn assert_send<T: Send>(_: T) {}

#[allow(dead_code)]
fn futures_can_be_spawned(repository: &crate::Repository, descriptor: &image::Descriptor, target: &crate::Target) {
    assert_send(repository.resolve(target));
    assert_send(repository.fetch_manifest(descriptor));
    assert_send(repository.fetch_blob(descriptor, crate::BlobStart::Beginning));
    assert_send(repository.push_blob(
        descriptor,
        std::sync::Arc::new(bytes::Bytes::new()),
        &[],
        crate::UploadMode::Whole,
    ));
    assert_send(repository.push_manifest(target, "", bytes::Bytes::new()));
}
