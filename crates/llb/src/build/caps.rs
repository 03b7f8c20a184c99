//! Names of the features that an op needs from its solver (`solver/pb/caps.go` upstream).

pub(super) const CONSTRAINTS: &str = "constraints";
pub(super) const PLATFORM: &str = "platform";
pub(super) const META_IGNORE_CACHE: &str = "meta.ignorecache";
pub(super) const META_DESCRIPTION: &str = "meta.description";

pub(super) const SOURCE_IMAGE: &str = "source.image";
pub(super) const SOURCE_IMAGE_RESOLVE_MODE: &str = "source.image.resolvemode";
pub(super) const SOURCE_OCI_LAYOUT: &str = "source.ocilayout";
pub(super) const SOURCE_LOCAL: &str = "source.local";
pub(super) const SOURCE_LOCAL_UNIQUE: &str = "source.local.unique";
pub(super) const SOURCE_LOCAL_SESSION: &str = "source.local.sessionid";
pub(super) const SOURCE_LOCAL_INCLUDE: &str = "source.local.includepatterns";
pub(super) const SOURCE_LOCAL_EXCLUDE: &str = "source.local.excludepatterns";
pub(super) const SOURCE_LOCAL_FOLLOW: &str = "source.local.followpaths";
pub(super) const SOURCE_LOCAL_SHARED_KEY: &str = "source.local.sharedkeyhint";
pub(super) const SOURCE_GIT: &str = "source.git";
pub(super) const SOURCE_GIT_KEEP_DIR: &str = "source.git.keepgitdir";
pub(super) const SOURCE_GIT_FULL_URL: &str = "source.git.fullurl";
pub(super) const SOURCE_GIT_CHECKSUM: &str = "source.git.checksum";
pub(super) const SOURCE_GIT_SKIP_SUBMODULES: &str = "source.git.skipsubmodules";
pub(super) const SOURCE_GIT_MTIME: &str = "source.git.mtime";
pub(super) const SOURCE_GIT_FETCH_BY_COMMIT: &str = "source.git.fetchbycommit";
pub(super) const SOURCE_GIT_KNOWN_HOSTS: &str = "source.git.knownsshhosts";
pub(super) const SOURCE_GIT_SSH_SOCK: &str = "source.git.mountsshsock";
pub(super) const SOURCE_HTTP: &str = "source.http";
pub(super) const SOURCE_HTTP_CHECKSUM: &str = "source.http.checksum";

pub(super) const EXEC_BASE: &str = "exec.meta.base";
pub(super) const EXEC_CDI: &str = "exec.meta.cdi";
pub(super) const EXEC_NETWORK: &str = "exec.meta.network";
pub(super) const EXEC_PROXY: &str = "exec.meta.proxyenv";
pub(super) const EXEC_SECURITY: &str = "exec.meta.security";
pub(super) const EXEC_DEFAULT_PATH: &str = "exec.meta.setsdefaultpath";
pub(super) const EXEC_ULIMIT: &str = "exec.meta.ulimit";
pub(super) const EXEC_RESOURCES: &str = "exec.meta.linux.resources";
pub(super) const EXEC_BIND: &str = "exec.mount.bind";
pub(super) const EXEC_CACHE: &str = "exec.mount.cache";
pub(super) const EXEC_CACHE_SHARING: &str = "exec.mount.cache.sharing";
pub(super) const EXEC_SELECTOR: &str = "exec.mount.selector";
pub(super) const EXEC_TMPFS: &str = "exec.mount.tmpfs";
pub(super) const EXEC_TMPFS_SIZE: &str = "exec.mount.tmpfs.size";
pub(super) const EXEC_SECRET: &str = "exec.mount.secret";
pub(super) const EXEC_SECRET_ENV: &str = "exec.secretenv";
pub(super) const EXEC_SSH: &str = "exec.mount.ssh";

pub(super) const FILE: &str = "file.base";
pub(super) const MERGE: &str = "mergeop";
