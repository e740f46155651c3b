#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narwire::codec::nar::layout::fuzz_layout(data));
