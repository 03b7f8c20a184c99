//! Hints that several rooms give.

/// What makes room where the engine has no daemon around it. In hints it stands for the command that does so: who shows them
/// knows better which that is.
pub const PRUNE: &str = "`hullworks prune`";

/// What to try where the state has no room.
pub fn no_space() -> String {
    format!("free space on the volume of the state directory, or run {PRUNE}")
}
