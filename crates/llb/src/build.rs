//! Making LLB: typed states that marshal to the bytes that BuildKit's Go client would write.
