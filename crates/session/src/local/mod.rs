//! A session in the same process: directories are read in place, secrets come from files and the
//! environment, credentials from docker's `config.json`.
